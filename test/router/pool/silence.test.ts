// What the pool makes of an instance that is not heard, and of its own deafness.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import { fromJson } from "@bufbuild/protobuf";
import { DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { type Info, InfoSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import type { ServiceError } from "../../../services/common/errors.ts";
import { createPool, type Pool } from "../../../services/router/pool/pool.ts";
import { reserveMessage } from "../../../services/router/leg/wire.ts";
import { methodPath } from "../../../services/rpc/service.ts";
import { silentLog } from "../../support/log-sink.ts";
import { deferred, within } from "../../support/waits.ts";
import { startDecode } from "../support/fake-instance.ts";
import { standingIn } from "../support/fleet.ts";
import { instanceIn, untilPool, untilStanding } from "../support/pool-waits.ts";

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

const start = (): Pool => createPool({ log: silentLog, clock: systemClock });

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

describe("an instance that is not heard", () => {
  it("is suspect before it is silent: it gets no new leg, and what it has not answered is given up", async () => {
    await using child = await startChild("d1");
    await using other = await startDecode({ instanceId: "d2" });
    await using pool = start();
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    const stoppedMs = performance.now();
    child.signal("SIGSTOP");
    const { error, standing } = await reserveOn(pool, "d1");
    const tookMs = performance.now() - stoppedMs;
    assert.deepEqual([error?.code, standing], ["instance_lost", "suspect"]);
    assert.ok(tookMs < 1_500, `it took ${tookMs} ms`);
    assert.deepEqual([standingIn(pool.view, "d1"), standingIn(pool.view, "d2")], ["suspect", "serves"]);
    child.signal("SIGCONT");
    await untilStanding(pool, "d1", "serves");
  });

  it("keeps its legs, and gets new ones, until it is silent where no other serves", async () => {
    await using child = await startChild("d1");
    await using pool = start();
    pool.update([child.info]);
    await untilStanding(pool, "d1", "serves");
    const standings = new Set<string>();
    pool.onChange(() => standings.add(standingIn(pool.view, "d1")));
    child.signal("SIGSTOP");
    const { error, standing } = await reserveOn(pool, "d1");
    assert.equal(error?.code, "instance_lost");
    assert.ok(["silent", "unreachable"].includes(standing), standing);
    assert.ok(!standings.has("suspect"));
  });
});

describe("a router that stood still itself", () => {
  it("takes no instance for silent that it could not hear", async () => {
    await using child = await startChild("d1");
    await using other = await startChild("d2");
    await using pool = start();
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilStanding(pool, id, "serves");
    for (const id of ["d1", "d2"]) void reserveOn(pool, id).catch(() => {}); // Connects the token path, too.
    await untilPool(pool, "both connections", () => ["d1", "d2"].every((id) => instanceIn(pool, id)!.channel.up));
    const taken: string[] = [];
    pool.onChange(() => {
      for (const id of ["d1", "d2"]) taken.push(standingIn(pool.view, id));
    });
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3_000);
    const [endedMs, seen] = [systemClock.nowMs(), (id: string): number => instanceIn(pool, id)!.loadAtMs];
    await untilPool(pool, "news of both", () => ["d1", "d2"].every((id) => seen(id) > endedMs + 500));
    assert.deepEqual([...new Set(taken)], ["serves"]);
  });
});
