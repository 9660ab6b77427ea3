// Prints one line per suite during the run; then every failure in full, every skipped test with its reason, and the
// sum.
"use strict";
const { writeFileSync } = require("node:fs");
const { inspect } = require("node:util");

const coloured = process.stdout.isTTY === true && !process.env.NO_COLOR;
const paint = (code, text) => (coloured ? `\x1b[${code}m${text}\x1b[0m` : text);
const green = (text) => paint(32, text);
const red = (text) => paint(31, text);
const dim = (text) => paint(2, text);

module.exports = class Reporter {
  constructor(runner) {
    const total = { passed: 0, failed: 0, skipped: 0 };
    const failures = [];
    const skipped = new Map();
    let suite = fresh();

    runner.on("pass", () => {
      total.passed++;
      suite.passed++;
    });
    runner.on("pending", (test) => {
      total.skipped++;
      suite.skipped++;
      const reason = reasonOf(test);
      skipped.set(reason, [...(skipped.get(reason) ?? []), test.fullTitle()]);
    });
    runner.on("fail", (test, error) => {
      total.failed++;
      suite.failed++;
      failures.push({ title: test.fullTitle(), file: test.file ?? test.parent?.file, error });
    });
    runner.on("suite", (started) => {
      if (started.parent?.root) suite = fresh();
    });
    runner.on("suite end", (ended) => {
      if (!ended.parent?.root || suite.passed + suite.failed + suite.skipped === 0) return;
      const mark = suite.failed > 0 ? red("✗") : suite.passed > 0 ? green("✓") : dim("-");
      const counts = [
        suite.passed > 0 ? `${suite.passed} passed` : "",
        suite.failed > 0 ? red(`${suite.failed} failed`) : "",
        suite.skipped > 0 ? `${suite.skipped} skipped` : "",
      ].filter(Boolean);
      const ms = Math.round(performance.now() - suite.startMs);
      console.log(`${mark} ${ended.title} ${dim(`(${counts.join(", ")}, ${ms} ms)`)}`);
    });
    runner.once("end", () => {
      for (const failure of failures)
        console.log(`\n${red("✗")} ${failure.title}\n${dim(`  ${failure.file ?? ""}`)}\n${describe(failure.error)}`);
      if (failures.length > 0) console.log("");
      for (const [reason, titles] of skipped) {
        console.log(`skipped, ${reason}:`);
        for (const title of titles) console.log(`  ${title}`);
      }
      // scripts/tests.mjs prints the sum itself, as its very last line. If mocha is run by hand, the reporter prints
      // it.
      if (process.env.TANDEM_TEST_RESULT) writeFileSync(process.env.TANDEM_TEST_RESULT, JSON.stringify(total));
      else
        console.log(
          `${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ""}`,
        );
    });
  }
};

function fresh() {
  return { passed: 0, failed: 0, skipped: 0, startMs: performance.now() };
}

/** The reason that test/support/skip.ts set on the test, or on a suite around it. */
function reasonOf(test) {
  for (let at = test; at; at = at.parent) if (at.skipReason) return at.skipReason;
  return "no reason given";
}

function describe(error) {
  if (!(error instanceof Error)) return `  thrown: ${inspect(error)}`;
  const lines = [error.stack ?? `${error.name}: ${error.message}`];
  // An assertion whose message the test gave doesn't show what was compared.
  if ("actual" in error && "expected" in error && error.generatedMessage === false) {
    lines.push(
      `expected: ${inspect(error.expected, { depth: 6 })}`,
      `actual:   ${inspect(error.actual, { depth: 6 })}`,
    );
  }
  if (error.cause !== undefined)
    lines.push(`caused by: ${error.cause instanceof Error ? error.cause.stack : inspect(error.cause)}`);
  return lines.join("\n").replace(/^/gm, "  ");
}
