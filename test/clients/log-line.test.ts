import assert from "node:assert/strict";
import { renderLogLine } from "../../clients/common/log-line.ts";

describe("a line that a child wrote", () => {
  it("shows level, message and fields, and is quiet at info", () => {
    const line = JSON.stringify({
      time: "2026-11-22T10:00:00Z",
      level: "info",
      name: "router",
      msg: "request ended",
      id: "cmpl-1",
      ms: 3,
    });
    assert.deepEqual(renderLogLine(line, false), { text: "info request ended id=cmpl-1 ms=3", isLoud: false });
  });

  it("is loud at warn and above, and shows an error by its message", () => {
    const line = JSON.stringify({
      level: "warn",
      msg: "leg failed",
      error: { message: "engine gone", stack: "Error: ..." },
    });
    assert.deepEqual(renderLogLine(line, false), { text: 'warn leg failed error="engine gone"', isLoud: true });
  });

  it("is loud and unchanged if it is not a log line", () => {
    for (const line of ["FATAL ERROR: heap out of memory", "{not json", "{}"]) {
      assert.deepEqual(renderLogLine(line, false), { text: line, isLoud: true });
    }
  });
});
