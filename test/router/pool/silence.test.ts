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
import { memberOf, untilCondition, untilPool } from "../support/pool-waits.ts";

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
function reserveOn(pool: Pool, instanceId: string): Promise<{ error: ServiceError | undefined; condition: string }> {
  const end = deferred<{ error: ServiceError | undefined; condition: string }>();
  const call = memberOf(pool, instanceId)!.channel.open(DECODE_PATH, {
    onMessage: () => assert.fail("it was answered"),
    onEnd: (error) => end.resolve({ error, condition: memberOf(pool, instanceId)!.condition }),
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
  it("is doubted before it is silent: it gets no new leg, and what it has not answered is given up", async () => {
    await using child = await startChild("d1");
    await using other = await startDecode({ instanceId: "d2" });
    await using pool = start();
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilCondition(pool, id, "serving");
    const stoppedMs = performance.now();
    child.signal("SIGSTOP");
    const { error, condition } = await reserveOn(pool, "d1");
    const tookMs = performance.now() - stoppedMs;
    assert.deepEqual([error?.code, condition], ["instance_lost", "doubted"]);
    assert.ok(tookMs < 1_500, `it took ${tookMs} ms`);
    assert.deepEqual([memberOf(pool, "d1")!.eligible, memberOf(pool, "d2")!.eligible], [false, true]);
    child.signal("SIGCONT");
    await untilCondition(pool, "d1", "serving");
  });

  it("keeps its legs, and gets new ones, until it is silent where no other serves", async () => {
    await using child = await startChild("d1");
    await using pool = start();
    pool.update([child.info]);
    await untilCondition(pool, "d1", "serving");
    const conditions = new Set<string>();
    pool.onChange(() => conditions.add(memberOf(pool, "d1")!.condition));
    child.signal("SIGSTOP");
    const { error, condition } = await reserveOn(pool, "d1");
    assert.equal(error?.code, "instance_lost");
    assert.ok(["silent", "unreachable"].includes(condition), condition);
    assert.ok(!conditions.has("doubted"));
  });
});

describe("a router that stood still itself", () => {
  it("takes no instance for silent that it could not hear", async () => {
    await using child = await startChild("d1");
    await using other = await startChild("d2");
    await using pool = start();
    pool.update([child.info, other.info]);
    for (const id of ["d1", "d2"]) await untilCondition(pool, id, "serving");
    for (const id of ["d1", "d2"]) void reserveOn(pool, id).catch(() => {}); // Connects the token path, too.
    await untilPool(pool, "both connections", () => ["d1", "d2"].every((id) => memberOf(pool, id)!.channel.up));
    const taken: string[] = [];
    pool.onChange(() => {
      for (const id of ["d1", "d2"]) taken.push(memberOf(pool, id)!.condition);
    });
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 3_000);
    const [endedMs, seen] = [systemClock.nowMs(), (id: string): number => memberOf(pool, id)!.loadAtMs];
    await untilPool(pool, "news of both", () => ["d1", "d2"].every((id) => seen(id) > endedMs + 500));
    assert.deepEqual([...new Set(taken)], ["serving"]);
  });
});
