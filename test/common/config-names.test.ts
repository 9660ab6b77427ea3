import assert from "node:assert/strict";
import { upConfig } from "../../clients/cli/up/config.ts";
import { variablesOf } from "../../services/common/config-schema.ts";
import type { ConfigDefinition } from "../../services/common/config.ts";
import { editDistance } from "../../services/common/nearest.ts";
import { decodeConfig } from "../../services/decode/config.ts";
import { prefillConfig } from "../../services/prefill/config.ts";
import { routerConfig } from "../../services/router/config.ts";
import { engineConfig } from "../../services/tiny-engine/config.ts";

const definitions: readonly ConfigDefinition[] = [upConfig, routerConfig, prefillConfig, decodeConfig, engineConfig];

describe("the variables of all processes", () => {
  it("are no typing error apart: each process refuses a near miss of its own, and they share one environment", () => {
    const names = new Set(
      definitions.flatMap(({ options }) => [...options.values()].map((option) => variablesOf(option)[0]!)),
    );
    const near = [...names].flatMap((a) =>
      [...names].filter((b) => a < b && editDistance(a, b) === 1).map((b) => `${a} ${b}`),
    );
    assert.deepEqual(near, []);
  });

  it("have settings whose documentation is a sentence", () => {
    for (const { name, options } of definitions) {
      for (const [key, { doc }] of options) assert.match(doc, /^\S.{10,}[.)]$/s, `${name}: ${key}: ${doc}`);
    }
  });
});
