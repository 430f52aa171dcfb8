// The few icons of the page, drawn as strokes on a grid of 16; they are ornaments beside words or labels, so screen readers skip them.
const PATHS = {
  info: "M8 7.2v4M8 4.8v.2M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8z",
  pin: "M10 1.8 14.2 6l-3.2 1.2-2.6 4L4.8 7.6l4-2.6zM6.4 9.6 2 14",
  wide: "M9.5 2H14v4.5M14 2 9.3 6.7M6.5 14H2V9.5M2 14l4.7-4.7",
  more: "M3 8h.1M8 8h.1M13 8h.1",
  search: "M7 2.2a4.8 4.8 0 1 0 0 9.6 4.8 4.8 0 0 0 0-9.6zM10.6 10.6 14 14",
  sun: "M8 5.2a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.6zM8 1v1.6M8 13.4V15M1 8h1.6M13.4 8H15M3 3l1.2 1.2M11.8 11.8 13 13M13 3l-1.2 1.2M4.2 11.8 3 13",
  moon: "M13.5 9.6A5.8 5.8 0 0 1 6.4 2.5a5.8 5.8 0 1 0 7.1 7.1z",
  system: "M2 3h12v8H2zM6 14h4M8 11v3",
  close: "M3.5 3.5l9 9M12.5 3.5l-9 9",
  down: "M4 6l4 4 4-4",
  right: "M6 4l4 4-4 4",
  check: "M3 8.5l3.2 3.2L13 5",
  warning: "M8 2 14.6 13.6H1.4zM8 6.4v3.2M8 11.6v.1",
  critical: "M5.3 1.8h5.4l3.5 3.5v5.4l-3.5 3.5H5.3l-3.5-3.5V5.3zM8 4.8v4M8 11v.1",
  notice: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8zM8 7.2v4M8 4.8v.2",
  link: "M6.6 9.4l2.8-2.8M7 4.6l1.5-1.5a3 3 0 0 1 4.3 4.3L11.3 9M9 11.4l-1.5 1.5a3 3 0 0 1-4.3-4.3L4.7 7",
  help: "M8 1.8a6.2 6.2 0 1 0 0 12.4A6.2 6.2 0 0 0 8 1.8zM6.2 6.3A1.8 1.8 0 1 1 8 8.4v1M8 11.2v.1",
  logo: "M2 3.4h4.2l7.8 7.6v1.8h-4.2L2 5.2z",
} as const;

export type IconName = keyof typeof PATHS;

export function Icon({ name, class: look = "" }: { name: IconName; class?: string }) {
  return (
    <svg class={`icon ${name === "logo" ? "logo" : ""} ${look}`} viewBox="0 0 16 16" aria-hidden="true" focusable="false">
      <path d={PATHS[name]} />
    </svg>
  );
}
