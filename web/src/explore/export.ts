// A panel as a file: its picture with a title (PNG), or its rows (CSV, as fine as the server gives them).
import { api, MOST_POINTS } from "../api/client";
import type { Course } from "../api/series";
import { colour, rem } from "../app/theme";
import type { Range } from "./queue";

function save(name: string, blob: Blob): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function savePicture(run: string, title: string, canvas: HTMLCanvasElement): void {
  const scale = devicePixelRatio * rem(),
    head = 2.4 * scale;
  const all = document.createElement("canvas");
  all.width = canvas.width;
  all.height = canvas.height + head;
  const ctx = all.getContext("2d")!;
  ctx.fillStyle = colour("--card");
  ctx.fillRect(0, 0, all.width, all.height);
  ctx.fillStyle = colour("--ink");
  ctx.font = `600 ${0.85 * scale}px system-ui, sans-serif`;
  ctx.fillText(`${title} · ${run}`, 0.8 * scale, 1.6 * scale, all.width - 1.6 * scale);
  ctx.drawImage(canvas, 0, head);
  all.toBlob((blob) => {
    if (blob) save(`${run}-${title}.png`, blob);
  }, "image/png");
}

/** Rows as text; numbers are written in full, and what was no number as `nan`. */
export function asCsv(course: Course): string {
  const lines = ["step,time,tokens,value,low,low_rank,high,high_rank"];
  for (let row = 0; row < course.rows; row++) {
    const cells = [course.step, course.time, course.tokens, course.value, course.low, course.lowRank, course.high, course.highRank].map((column) =>
      String(column[row]).replace("NaN", "nan").replace("Infinity", "inf"),
    );
    lines.push(cells.join(","));
  }
  return `${lines.join("\n")}\n`;
}

export async function saveRows(run: string, id: string, name: string, range: Range | null): Promise<void> {
  const finite = range && { from: range.from, ...(Number.isFinite(range.to) ? { to: range.to } : {}) };
  const answer = await api.series(id, [name], { ...finite, points: MOST_POINTS });
  const course = answer.courses.get(name);
  if (course)
    save(
      `${run}-${name}${course.measured > course.rows * 1.02 ? `-${course.rows}-of-${course.measured}` : ""}.csv`,
      new Blob([asCsv(course)], { type: "text/csv" }),
    );
}
