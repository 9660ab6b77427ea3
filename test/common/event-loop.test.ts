import { measureEventLoop } from "../../services/common/event-loop.ts";
import { createMetrics } from "../../services/common/metrics.ts";
import { eventually } from "../support/waits.ts";

describe("the event loop's delay", () => {
  it("is counted, and a long turn shows", async () => {
    const metrics = createMetrics();
    using _loop = measureEventLoop(metrics);
    const untilMs = performance.now() + 120;
    while (performance.now() < untilMs);
    await eventually("the long turn is counted", async () => {
      const text = await metrics.text();
      const count = (bound: string): number =>
        Number(new RegExp(`delay_seconds_bucket\\{le="${bound.replace("+", "\\+")}"\\} (\\d+)`).exec(text)![1]);
      return count("+Inf") > count("0.05");
    });
  });
});
