// What the pool makes of an instance that is not heard, and of its own deafness.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { fromJson } from "@bufbuild/protobuf";
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { type Info, InfoSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import type { Clock } from "../../../services/common/clock.ts";
import type { ServiceError } from "../../../services/common/errors.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { reserveMessage } from "../../../services/router/leg/wire.ts";
import { methodPath } from "../../../services/rpc/service.ts";
import { logSink, silentLog } from "../../support/log-sink.ts";
import { type ManualClock, manualClock } from "../../support/manual-clock.ts";
import { deferred, eventually, within } from "../../support/waits.ts";
import { startDecode } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import { instanceIn, untilStanding } from "../support/pool-waits.ts";

const DECODE_PATH = methodPath(DecodeService, DecodeService.method.decode);

interface ChildInstance {
  readonly info: Info;
  signal(signal: NodeJS.Signals): void;
  [Symbol.asyncDispose](): Promise<void>;
}

async function startChild(instanceId: string): Promise<ChildInstance> {
  const script = fileURLToPath(new URL("silent-child.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import=tsx", script, instanceId], { stdio: ["pipe", "pipe", "inherit"] });
  const [line] = (await within(once(child.stdout, "data"), "the child's facts", 15_000)) as [Buffer];
  return {
    info: fromJson(InfoSchema, JSON.parse(line.toString())),
    signal: (signal) => void child.kill(signal),
    async [Symbol.asyncDispose]() {
      const exit = once(child, "exit");
      child.kill("SIGKILL");
      await exit;
    },
  };
}

const start = (clock: Clock): Pool => createPool({ log: silentLog, clock });

/** A reservation that nobody answers. Resolves with how it ends, and what the instance was taken for then. */
function reserveOn(pool: Pool, instanceId: string): Promise<{ error: ServiceError | undefined; standing: string }> {
  const end = deferred<{ error: ServiceError | undefined; standing: string }>();
  const call = instanceIn(pool, instanceId)!.channel.open(DECODE_PATH, {
    onMessage: () => assert.fail("it was answered"),
    onEnd: (error) => end.resolve({ error, standing: standingIn(pool.view, instanceId) }),
  });
  call.write(
    reserveMessage(
      {
        legId: "0".repeat(32),
        path: "/v1/completions",
        prefillKvAddress: "",
        decodeKvAddress: "",
        prefillGrpcAddress: "",
      },
      Buffer.from("{}"),
    ),
  );
  return within(end.promise, "the end of the reservation");
}

/** Moves the clock by so many heartbeats, each of which the instances that are named answer. */
async function beats(count: number, pool: Pool, clock: ManualClock, ...ids: string[]): Promise<void> {
  for (let beat = 0; beat < count; beat++) {
    const beforeMs = clock.nowMs();
    await clock.pass(500);
    await eventually("an answer of each", () => ids.every((id) => instanceIn(pool, id)!.loadAtMs > beforeMs));
  }
}

describe("a silent instance", () => {
  it("is suspect before it is silent: it gets no new leg, and its unanswered calls are given up", async () => {
    await using child = await startChild("d1");
    await using other = await startDecode({ instanceId: "d2" });
    const clock = manualClock();
    await using pool = start(clock);
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    child.signal("SIGSTOP");
    const ended = reserveOn(pool, "d1");
    await beats(3, pool, clock, "d2");
    const { error, standing } = await ended;
    assert.deepEqual([error?.code, standing], ["instance_lost", "suspect"]);
    assert.deepEqual([standingIn(pool.view, "d1"), standingIn(pool.view, "d2")], ["suspect", "serves"]);
    child.signal("SIGCONT");
    await eventually("its load", () => instanceIn(pool, "d1")!.loadAtMs === clock.nowMs());
    await clock.pass(125);
    assert.equal(standingIn(pool.view, "d1"), "serves");
  });

  it("keeps its legs and gets new ones until it is silent, if no other instance serves", async () => {
    await using child = await startChild("d1");
    const clock = manualClock();
    await using pool = start(clock);
    pool.update([child.info]);
    await untilStanding(pool, "d1", "serves");
    const standings = new Set<string>();
    pool.onChange(() => standings.add(standingIn(pool.view, "d1")));
    child.signal("SIGSTOP");
    const ended = reserveOn(pool, "d1");
    await clock.pass(1_500);
    assert.equal(standingIn(pool.view, "d1"), "serves");
    await clock.pass(750);
    const { error } = await ended;
    assert.equal(error?.code, "instance_lost");
    assert.deepEqual([...standings], ["serves", "silent"]);
  });
});

describe("instances that all fall silent together", () => {
  it("serve on over their connections for six seconds: the router rather doubts itself", async () => {
    await using one = await startChild("d1");
    await using two = await startChild("d2");
    const clock = manualClock();
    const sink = logSink();
    await using pool = createPool({ log: sink.log, clock });
    pool.update([one.info, two.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    const seen = (): unknown[] => {
      const ids = ["d1", "d2"];
      const links = ids.map((id) => instanceIn(pool, id)!.channel.state.kind);
      return [pool.view.doubtsItself, ...ids.map((id) => standingIn(pool.view, id)), ...links];
    };
    for (const child of [one, two]) child.signal("SIGSTOP");
    for (const ms of [1_500, 3_500]) {
      await clock.pass(ms);
      assert.deepEqual(seen(), [true, "serves", "serves", "suspect", "suspect"]);
    }
    for (const child of [one, two]) child.signal("SIGCONT");
    await beats(2, pool, clock, "d1", "d2");
    assert.deepEqual(seen(), [false, "serves", "serves", "up", "up"]);
    for (const child of [one, two]) child.signal("SIGSTOP");
    await clock.pass(7_000);
    await untilStanding(pool, "d1", "silent");
    assert.equal(pool.view.doubtsItself, false);
    assert.equal(sink.lines.filter(({ msg }) => String(msg).includes("doubts itself")).length > 0, true);
  });
});

describe("a router that was stopped itself", () => {
  it("does not count that time as silence of its instances", async () => {
    await using child = await startChild("d1");
    await using other = await startChild("d2");
    const clock = manualClock();
    await using pool = start(clock);
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    const before = pool.view;
    let changes = 0;
    pool.onChange((isNewView) => void (changes += Number(isNewView)));
    clock.stall(3_000);
    await beats(4, pool, clock, "d1", "d2");
    assert.equal(changes, 0);
    assert.equal(pool.view, before);
  });
});
