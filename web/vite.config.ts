// How the page is built: one script and one style sheet without hashes in their names, so that the built assets can live in the repository with
// small differences from one commit to the next, and so that a frozen report can inline them. `PENSTOCK_PAGE` is another folder to write to (the
// check that rebuilds uses it); `PENSTOCK_API` is where `npm run dev` finds a running `penstock dashboard`.
import { defineConfig } from "vite";

const env = (globalThis as unknown as { process: { env: Record<string, string | undefined> } }).process.env;

export default defineConfig({
  base: "/",
  build: {
    outDir: env.PENSTOCK_PAGE ?? "../src/penstock/dashboard/page",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    modulePreload: false,
    reportCompressedSize: false,
    target: "es2022",
    rolldownOptions: {
      output: { entryFileNames: "app.js", chunkFileNames: "[name].js", assetFileNames: "app.[ext]", codeSplitting: false },
    },
  },
  oxc: { jsx: { runtime: "automatic", importSource: "preact" } },
  server: { proxy: { "/api": env.PENSTOCK_API ?? "http://127.0.0.1:8470" } },
});
