// A table of what stood before beside what stands after: how Between and Differ say what is not the same.
import type { ComponentChildren } from "preact";

export function Beside({ columns, rows }: { columns: string[]; rows: { key: string; title: ComponentChildren; cells: string[] }[] }) {
  return (
    <table>
      <thead>
        <tr>
          <td />
          {columns.map((column) => (
            <th key={column} class="right">
              {column}
            </th>
          ))}
        </tr>
      </thead>
      <tbody>
        {rows.map(({ key, title, cells }) => (
          <tr key={key}>
            <th>{title}</th>
            {cells.map((cell, index) => (
              <td key={index} class="right">
                {cell}
              </td>
            ))}
          </tr>
        ))}
      </tbody>
    </table>
  );
}
