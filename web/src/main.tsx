// Where the page begins: styles, the token of the address, and the frame.
import { render } from "preact";
import "uplot/dist/uPlot.min.css";
import "./styles/base.css";
import "./styles/bar.css";
import "./styles/runs.css";
import "./styles/overview.css";
import "./styles/explore.css";
import "./styles/history.css";
import "./styles/inside.css";
import { arrive } from "./app/me";
import { Shell } from "./app/shell";

void arrive().catch(() => undefined);
render(<Shell />, document.getElementById("app")!);
