// Restarts of engines under load, in processes of their own. A restart by an operator, or because KV in the engine can't
// be accounted for, costs nothing; one because the engine stalled as vLLM 0.23 does costs at most the legs that ran on it.
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { IDENTITY, freshLegId, openDecode, type SimInstance } from "../instance/legs.ts";
import { engineOf } from "../live/support/processes.ts";
import { askEngine } from "../support/engine-calls.ts";
import { eligible, startProcess, startRouterProcess, type TestProcess, type TestRouter } from "../support/processes.ts";
import { steadyLoad, type SteadyLoad } from "../support/steady-load.ts";
import { eventually } from "../support/waits.ts";
import { dialRpc } from "../../services/rpc/channel.ts";

const FAKE = fileURLToPath(new URL("../support/fake-vllm.ts", import.meta.url));
const TSX = import.meta.resolve("tsx");
const LONG_MS = 60_000;
/** Of decode instances. Prefill engines hang here until they are killed, which a slow machine may do late. */
const STALL_MS = 2_000;

interface Kind {
  readonly name: string;
  readonly model: string;
  flags(folder: string): readonly string[];
}

const SIM: Kind = {
  name: "sims that fail as vLLM 0.23 does (p2p-zmq)",
  model: "tandem-sim",
  flags: () => ["--engine=sim", "--connector=p2p-zmq", "--engine.flag=--fault=upstream", "--engine.flag=--inject"],
};
const NIXL: Kind = {
  name: "sims (nixl)",
  model: "tandem-sim",
  flags: () => ["--engine=sim", "--connector=nixl", "--engine.flag=--inject"],
};
const VLLM: Kind = {
  name: "what passes for vLLM 0.23 (p2p-nccl)",
  model: "m",
  flags: (folder) => ["--engine=vllm", "--connector=p2p-nccl", "--model=m", `--vllm.command=${join(folder, "vllm")}`],
};

interface Fleet extends AsyncDisposable {
  readonly router: TestRouter;
  readonly roles: { readonly prefill: TestProcess[]; readonly decode: TestProcess[] };
  /** Until the router gives it legs. */
  start(role: "prefill" | "decode"): Promise<any>;
  load(clients: number, tokens: number): SteadyLoad;
}

async function startFleet(kind: Kind): Promise<Fleet> {
  const folder = mkdtempSync(join(tmpdir(), "tandem-restarts-"));
  writeFileSync(join(folder, "vllm"), `#!/bin/sh\nexec "${process.execPath}" --import="${TSX}" "${FAKE}" "$@"\n`);
  chmodSync(join(folder, "vllm"), 0o755);
  // One home for all: an instance that starts again knows what its predecessor wrote down.
  const env = { XDG_STATE_HOME: folder, TMPDIR: folder };
  const all: TestProcess[] = [];
  const router = await startRouterProcess([], env);
  all.push(router);
  const roles = { prefill: [] as TestProcess[], decode: [] as TestProcess[] };
  const begin = (role: "prefill" | "decode"): TestProcess => {
    const stallMs = role === "decode" ? STALL_MS : LONG_MS;
    const one = startProcess(
      role,
      ["--listen", "127.0.0.1:0", "--router", router.grpcAddress, `--stall_ms=${stallMs}`, ...kind.flags(folder)],
      env,
    );
    all.push(one);
    roles[role].push(one);
    return one;
  };
  const stopAll = async (): Promise<void> => {
    await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    const four = (["prefill", "prefill", "decode", "decode"] as const).map(begin);
    for (const one of four) await eligible(router, one);
  } catch (error) {
    const said = all.map((one) => one.output()).join("\n");
    await stopAll();
    throw new Error(`The fleet did not start:\n${said}`, { cause: error });
  }
  return {
    router,
    roles,
    start: (role) => eligible(router, begin(role)),
    load: (clients, tokens) => steadyLoad([router.url], { clients, tokens, model: kind.model }),
    [Symbol.asyncDispose]: stopAll,
  };
}

/** An instance as the router sees it; counts are numbers. */
async function find(router: TestRouter, pid: number): Promise<{ legsTotal: number; load: { running: number } }> {
  const { instances } = await router.call("ListInstances");
  const one = instances.find(({ info }: any) => info.pid === pid);
  return { legsTotal: Number(one?.legsTotal ?? 0), load: { running: one?.load?.running ?? 0 } };
}

for (const kind of [SIM, NIXL, VLLM]) {
  describe(`${kind.name}, started again under load`, function () {
    this.timeout(3 * LONG_MS);
    let fleet: Fleet;
    before(async () => {
      fleet = await startFleet(kind);
    });
    after(() => fleet?.[Symbol.asyncDispose]());

    for (const role of ["decode", "prefill"] as const) {
      it(`with its ${role} instance, drained and stopped: nothing is lost, and it comes back as a new partner`, async () => {
        const { router } = fleet;
        const instance = fleet.roles[role].shift()!;
        const { info } = await eligible(router, instance);
        const load = fleet.load(8, 40);
        await eventually("it has legs", async () => (await find(router, info.pid)).load.running > 0, LONG_MS);
        await router.call("DrainInstance", { instanceId: info.instanceId, reason: "a new engine" });
        await instance.end("SIGTERM");
        const again = await fleet.start(role);
        await eventually(
          "the next one has legs",
          async () => (await find(router, again.info.pid)).legsTotal > 10,
          LONG_MS,
        );
        await load.stop();
        // On a machine where the others got no processor for as long as it takes to be given up, nobody could serve.
        const unheard = router
          .logged("instance is out")
          .filter(({ instanceId }) => instanceId !== info.instanceId && instanceId !== again.info.instanceId);
        assert.deepEqual(
          load.failed.filter(({ error }) => unheard.length === 0 || !error!.startsWith("503 ")),
          [],
        );
        if (kind === VLLM) assert.notEqual(again.info.kvAddress, info.kvAddress);
      });
    }

    if (kind !== NIXL) {
      it("because decode stalled for lack of KV: costs at most the legs on it, and other pairs nothing", () =>
        standsStill(kind, fleet));
    }
    if (kind === VLLM)
      it("because prefill died with legs in it: decode engines that it may have sent KV to break no stream", () =>
        prefillDies(fleet));
  });
}

async function standsStill(kind: Kind, { router, roles, load: begin }: Fleet): Promise<void> {
  const [prefill] = roles.prefill;
  const [wedged] = roles.decode;
  const [{ info: prefillInfo }, { info }] = [await eligible(router, prefill!), await eligible(router, wedged!)];
  // Long answers, so that those which run there now still do when it stands still.
  const load = begin(8, 600);
  await eventually("streams run there", async () => (await find(router, info.pid)).load.running > 1, LONG_MS);

  await using channel = dialRpc(info.grpcAddress);
  const leg = openDecode({ channel } as unknown as SimInstance);
  const pair = {
    legId: freshLegId(),
    path: "/v1/completions",
    body: JSON.stringify({ model: kind.model, prompt: "Whose KV never came", max_tokens: 4, stream: true }),
  };
  leg.reserve(pair, undefined, {
    identity: IDENTITY,
    prefillKvAddress: prefillInfo.kvAddress,
    decodeKvAddress: info.kvAddress,
  });
  assert.ok((await leg.next())!.reserved !== undefined);
  leg.start();
  const wedgedAtMs = Date.now();
  await assert.rejects(leg.next(), (error: { code?: string }) => error.code === "engine_failed");
  // Promise 1: by the instance itself; the router would wait much longer.
  assert.ok(Date.now() - wedgedAtMs >= STALL_MS);
  assert.match(String(wedged!.logged("the engine is lost")[0]?.["why"]), /wedged: no token for/);

  const again = await eventually(
    "it is back, on another KV port",
    async () => {
      const now = await eligible(router, wedged!);
      return now.info.kvAddress !== info.kvAddress && now;
    },
    LONG_MS,
  );
  const backAtMs = Date.now();
  assert.equal(again.info.instanceId, info.instanceId);
  await eventually(
    "it has legs again",
    async () => (await find(router, info.pid)).legsTotal > Number(again.legsTotal),
    LONG_MS,
  );
  for (const one of [...roles.prefill, ...roles.decode]) await eligible(router, one);
  await load.stop();

  for (const { endedMs: at, error } of load.failed)
    assert.ok(at < backAtMs, `${at - backAtMs} ms after it was back: ${error}`);
  const { receipts } = await router.call("ListRequests", { limit: 1000 });
  const ranThere = (one: any): boolean =>
    (one.legs ?? []).some((each: any) => each.decodeInstanceId === info.instanceId && each.error);
  assert.ok(receipts.some(ranThere), "streams ran there");
  for (const one of receipts) assert.ok(one.outcome === "OUTCOME_COMPLETED" || ranThere(one), JSON.stringify(one));
  assert.ok(load.failed.length <= receipts.filter(ranThere).length);
}

async function prefillDies({ router, roles, load: begin }: Fleet): Promise<void> {
  const [dying] = roles.prefill;
  const { info } = await eligible(router, dying!);
  const load = begin(8, 300);
  await eventually("streams run", async () => (await find(router, roles.decode[0]!.pid)).load.running > 0, LONG_MS);
  const { pids, url } = engineOf(info.pid);
  const retired = (one: TestProcess): number => one.logged("the engine will be restarted").length;
  assert.equal(Math.max(...roles.decode.map(retired)), 0);
  assert.ok((await askEngine(url, "/sim/fault", { method: "POST", body: '"hang"' })).status === 200);
  await eventually("legs are in it", async () => (await find(router, info.pid)).load.running > 1);
  const ended = load.stop();
  process.kill(pids[0]!, "SIGKILL");
  const one = await eventually(
    "a decode engine retires",
    () => roles.decode.find((each) => retired(each) > 0),
    LONG_MS,
  );
  await ended;
  // What had no answer yet may be told to come again: each decode engine may have been sent KV by it.
  assert.deepEqual(
    load.failed.filter(({ error }) => !/^50[23] /.test(error!)),
    [],
  );
  await eventually("it works again", () => one.logged("the engine works again").length > 0, LONG_MS);
  for (const each of [...roles.prefill, ...roles.decode]) await eligible(router, each);
}
