import assert from "node:assert/strict";
import { create } from "@bufbuild/protobuf";
import { InfoSchema, Role } from "#gen/tandem/instance/v1/instance_pb.js";
import type { CanaryResult } from "../../../services/router/probe/pair-canary.ts";
import { needsCheck, startPairChecker } from "../../../services/router/probe/pair-checker.ts";
import type { Member } from "../../../services/router/pool/member.ts";
import type { PoolSnapshot } from "../../../services/router/pool/pool.ts";
import { silentLog } from "../../support/log-sink.ts";
import { manualClock } from "../../support/manual-clock.ts";

const RIGHT: CanaryResult = { kind: "right", worstDelta: 0.01, ms: 3 };
const WRONG: CanaryResult = { kind: "wrong", worstDelta: 0.9, tolerance: 0.2 };

const member = (instanceId: string, condition: Member["condition"] = "serving", engine = "vllm"): Member =>
  ({
    condition,
    info: create(InfoSchema, {
      instanceId,
      engine,
      role: instanceId.startsWith("p") ? Role.PREFILL : Role.DECODE,
      model: "m",
      connector: "nixl",
    }),
  }) as unknown as Member;

function setUp(results: Record<string, CanaryResult>) {
  const clock = manualClock();
  const verdicts = new Map<string, string | undefined>();
  const sent: string[] = [];
  let listener = (): void => {};
  let snapshot = { prefill: [member("p1")], decode: [member("d1"), member("d2")] } as unknown as PoolSnapshot;
  const checker = startPairChecker({
    clock,
    log: silentLog,
    send: async ({ info: prefill }, { info: decode }) => {
      const key = `${prefill.instanceId}|${decode.instanceId}`;
      sent.push(key);
      return results[key] ?? RIGHT;
    },
    pool: {
      get snapshot() {
        return snapshot;
      },
      onChange(told) {
        listener = told;
        return () => (listener = () => {});
      },
      pairChecked: (key, fault) => void verdicts.set(key, fault),
    },
  });
  return {
    clock,
    verdicts,
    sent,
    checker,
    async change(prefill: readonly Member[], decode: readonly Member[]) {
      snapshot = { prefill, decode } as unknown as PoolSnapshot;
      listener();
      await clock.pass(0);
    },
  };
}

describe("pairs of vLLM engines", () => {
  it("are each checked once before they are used", async () => {
    const { clock, verdicts, sent, change } = setUp({});
    await clock.pass(0);
    assert.deepEqual(sent, ["p1|d1", "p1|d2"]);
    assert.deepEqual(
      [...verdicts],
      [
        ["p1|d1", ""],
        ["p1|d2", ""],
      ],
    );
    await change([member("p1")], [member("d1"), member("d2")]);
    assert.equal(sent.length, 2);
  });

  it("that are wrong are not used, and tried again later and later", async () => {
    const results: Record<string, CanaryResult> = { "p1|d1": WRONG };
    const { clock, verdicts, sent } = setUp(results);
    await clock.pass(0);
    assert.match(verdicts.get("p1|d1")!, /does not answer from the KV/);
    assert.equal(verdicts.get("p1|d2"), "");
    await clock.pass(40_000);
    assert.ok(sent.length > 3 && sent.length < 12, `${sent.length}`);
    results["p1|d1"] = RIGHT;
    await clock.pass(31_000);
    assert.equal(verdicts.get("p1|d1"), "");
  });

  it("are checked anew when an engine was started again", async () => {
    const { clock, verdicts, sent, change } = setUp({});
    await clock.pass(0);
    await change([member("p1")], [member("d1", "starting"), member("d2")]);
    assert.equal(verdicts.get("p1|d1"), undefined);
    assert.equal(verdicts.get("p1|d2"), "");
    await change([member("p1")], [member("d1"), member("d2")]);
    assert.deepEqual(sent, ["p1|d1", "p1|d2", "p1|d1"]);
    assert.equal(verdicts.get("p1|d1"), "");
  });

  it("are those alone: Tandem's own engines refuse what doesn't fit by themselves", async () => {
    const info = (id: string, engine: string) => member(id, "serving", engine).info;
    assert.equal(needsCheck(info("p", "vllm"), info("d", "vllm")), true);
    assert.equal(needsCheck(info("p", "sim"), info("d", "sim")), false);
    assert.equal(
      needsCheck(info("p", "vllm"), create(InfoSchema, { ...info("d", "vllm"), engineVersion: "", dtype: "float32" })),
      true,
    );
  });
});
