// Restarts of engines under load, in processes of their own. A restart by an operator, or because of KV debt, costs
// nothing; one because the engine stalled as vLLM 0.23 does costs at most the legs that ran on it; a fault of one engine,
// or one request, restarts no other.
import assert from "node:assert/strict";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { IDENTITY, freshLegId, openDecode, type SimInstance } from "../instance/legs.ts";
import { engineOf } from "../live/support/processes.ts";
import { askEngine } from "../support/engine-calls.ts";
import { eligible, startProcess, startRouterProcess, type TestProcess, type TestRouter } from "../support/processes.ts";
import { skip } from "../support/skip.ts";
import { steadyLoad, type SteadyLoad } from "../support/steady-load.ts";
import { MAY_FETCH } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { dialRpc, type RpcChannel } from "../../services/rpc/channel.ts";
import { POISON } from "../../services/tiny-engine/faults.ts";

const STAND_IN = fileURLToPath(new URL("../../services/tiny-engine/stand-in.ts", import.meta.url));
const TSX = import.meta.resolve("tsx");
const LONG_MS = 60_000;
/** Of decode instances. Prefill engines hang here until they are killed, which a slow machine may do late. */
const STALL_MS = 2_000;
/** Of the decode instance that is started again first: any debt makes it ask for a restart. */
const NO_DEBT = ["--kv.debt_limit_ratio=0"];

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
  flags: (folder) => [
    "--engine=vllm",
    "--connector=p2p-nccl",
    "--model=m",
    `--vllm.command=${join(folder, "vllm")}`,
    "--engine.flag=--inject",
  ],
};

interface Fleet extends AsyncDisposable {
  readonly router: TestRouter;
  readonly roles: { readonly prefill: TestProcess[]; readonly decode: TestProcess[] };
  /** Until the router gives it legs. */
  start(role: "prefill" | "decode", flags?: readonly string[]): Promise<any>;
  load(clients: number, tokens: number): SteadyLoad;
}

async function startFleet(kind: Kind): Promise<Fleet> {
  const folder = mkdtempSync(join(tmpdir(), "tandem-restarts-"));
  writeFileSync(join(folder, "vllm"), `#!/bin/sh\nexec "${process.execPath}" --import="${TSX}" "${STAND_IN}" "$@"\n`);
  chmodSync(join(folder, "vllm"), 0o755);
  // One home for all: an instance that starts again knows what its predecessor wrote down.
  const env = { XDG_STATE_HOME: folder, TMPDIR: folder };
  const all: TestProcess[] = [];
  const router = await startRouterProcess([], env);
  all.push(router);
  const roles = { prefill: [] as TestProcess[], decode: [] as TestProcess[] };
  const begin = (role: "prefill" | "decode", flags: readonly string[] = []): TestProcess => {
    const stallMs = role === "decode" ? STALL_MS : LONG_MS;
    const one = startProcess(
      role,
      [
        "--listen",
        "127.0.0.1:0",
        "--router",
        router.grpcAddress,
        `--stall_ms=${stallMs}`,
        ...kind.flags(folder),
        ...flags,
      ],
      env,
    );
    all.push(one);
    roles[role].push(one);
    return one;
  };
  const loads: SteadyLoad[] = [];
  const stopAll = async (): Promise<void> => {
    // Also those of a test that failed: their clients would go on against a router that is gone.
    for (const load of loads) void load.stop();
    await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    const four = (["prefill", "prefill", "decode", "decode"] as const).map((role) => begin(role));
    for (const one of four) await eligible(router, one);
  } catch (error) {
    const said = all.map((one) => one.output()).join("\n");
    await stopAll();
    throw new Error(`The fleet did not start:\n${said}`, { cause: error });
  }
  return {
    router,
    roles,
    start: (role, flags) => eligible(router, begin(role, flags)),
    load(clients, tokens) {
      const load = steadyLoad([router.url], { clients, tokens, model: kind.model });
      loads.push(load);
      return load;
    },
    [Symbol.asyncDispose]: stopAll,
  };
}

/** An instance as the router sees it; counts are numbers. */
async function find(router: TestRouter, pid: number) {
  const { instances } = await router.call("ListInstances");
  const one = instances.find(({ info }: any) => info.pid === pid);
  return {
    info: one?.info,
    legsTotal: Number(one?.legsTotal ?? 0),
    load: { running: Number(one?.load?.running ?? 0) },
  };
}

for (const kind of [SIM, NIXL, VLLM]) {
  describe(`${kind.name}, started again under load`, function () {
    this.timeout(3 * LONG_MS);
    let fleet: Fleet;
    before(async function () {
      if (kind !== VLLM && !MAY_FETCH) skip(this, "takes long: CI=true or `npm test -- --all` runs it");
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
        const again = await fleet.start(role, role === "decode" ? NO_DEBT : []);
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
    if (kind !== VLLM) return;
    it("not because of a body that vLLM answers with 500: no engine restarts, and nothing else fails", () =>
      poison(fleet));
    it("because prefill died with legs in it: decode books what it may have been sent, and serves on up to its limit", () =>
      prefillDies(fleet));
    it("because a decode engine died: it alone, and prefill engines that hung on it", () => decodeDies(fleet));
    it("not because a prefill engine answers everything with 500, whatever the probes find", () => sickPrefill(fleet));
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

/** How often an engine of this instance was lost. */
const lost = (one: TestProcess): number => one.logged("the engine is lost").length;
const lostIn = (all: readonly TestProcess[]): number[] => all.map(lost);
const allOf = ({ roles }: Fleet): TestProcess[] => [...roles.prefill, ...roles.decode];

async function debtOf(router: TestRouter, pid: number): Promise<number> {
  const { instances } = await router.call("ListInstances");
  return Number(instances.find(({ info }: any) => info.pid === pid)?.load?.kvDebtBytes ?? 0);
}

function complete({ router }: Fleet, prompt: string): Promise<Response> {
  return fetch(`${router.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: VLLM.model, prompt, max_tokens: 4 }),
  });
}

async function poison(fleet: Fleet): Promise<void> {
  const { router, load: begin } = fleet;
  const before = lostIn(allOf(fleet));
  const load = begin(4, 20);
  for (let count = 0; count < 3; count++) assert.ok((await complete(fleet, POISON)).status >= 500);
  // KV of its legs is settled by now, or its decode instances were restarted.
  await eventually("its legs are settled", async () => {
    const { instances } = await router.call("ListInstances");
    return instances.every(({ load: one, eligible: is }: any) => is && (one.kvOrphans ?? 0) === 0);
  });
  const served = load.sent.length;
  await eventually("others are served", () => load.sent.length > served + 8);
  await load.stop();
  assert.deepEqual(load.failed, []);
  assert.deepEqual(lostIn(allOf(fleet)), before);
  for (const one of fleet.roles.decode) assert.equal(await debtOf(router, one.pid), 0, "nothing was sent, provably");
}

/** Kills a prefill engine while it has legs of all decode instances in it: nothing shows what it sent. */
async function killWithLegs(fleet: Fleet, prefill: TestProcess): Promise<void> {
  const { pids, url } = engineOf(prefill.pid);
  assert.equal((await askEngine(url, "/sim/fault", { method: "POST", body: '"hang"' })).status, 200);
  // At once, so that the router spreads them over both prefill instances.
  const burst = Array.from({ length: 16 }, () => complete(fleet, "A prompt in a dying engine"));
  await eventually("legs are in it", async () => (await find(fleet.router, prefill.pid)).load.running > 4, LONG_MS);
  // The router's spread over the decode instances is chance, so each gets a leg by hand.
  await using stuck = await legsByHand(fleet, prefill);
  process.kill(pids[0]!, "SIGKILL");
  await stuck.abandon();
  for (const { status } of await Promise.all(burst)) assert.equal(status, 200);
}

/** A leg from this prefill instance to each decode instance: reserved, and its prompt in the prefill engine. */
async function legsByHand({ router, roles }: Fleet, prefill: TestProcess) {
  const { info: from } = await find(router, prefill.pid);
  const channels: RpcChannel[] = [];
  const dial = (address: string): RpcChannel => channels[channels.push(dialRpc(address)) - 1]!;
  const toPrefill = dial(from.grpcAddress).client(PrefillService);
  const runningIn = async (): Promise<number> => (await find(router, prefill.pid)).load.running;
  const running = await runningIn();
  const legs = await Promise.all(
    roles.decode.map(async ({ pid }) => {
      const { info: to } = await find(router, pid);
      const call = openDecode({ channel: dial(to.grpcAddress) } as unknown as SimInstance);
      const body = JSON.stringify({ model: "m", prompt: "By hand, in a dying engine", max_tokens: 4, stream: true });
      const pair = { legId: freshLegId(), path: "/v1/completions", body };
      const addresses = { prefillKvAddress: from.kvAddress, decodeKvAddress: to.kvAddress };
      call.reserve(pair, undefined, {
        identity: IDENTITY,
        ...addresses,
        prefillGrpcAddress: from.grpcAddress,
        prefillInstanceId: from.instanceId,
      });
      assert.ok((await call.next())!.reserved !== undefined);
      const ended = assert.rejects(Promise.resolve(toPrefill.prefill({ ...pair, ...addresses })));
      return { call, ended };
    }),
  );
  await eventually("they are in it", async () => (await runningIn()) >= running + legs.length, LONG_MS);
  return {
    /** Once prefill has failed: whether it sent anything is not known. */
    async abandon() {
      for (const { call, ended } of legs) {
        await ended;
        call.abandon();
        assert.equal(await call.next(), undefined);
      }
    },
    async [Symbol.asyncDispose]() {
      for (const channel of channels) await channel[Symbol.asyncDispose]();
    },
  };
}

async function prefillDies(fleet: Fleet): Promise<void> {
  const { router, roles, load: begin } = fleet;
  const [patient, strict] = roles.decode;
  const { info } = await eligible(router, strict!);
  const before = lostIn(roles.decode);
  const load = begin(6, 100);
  await eventually("streams run", async () => (await find(router, strict!.pid)).load.running > 0, LONG_MS);
  await killWithLegs(fleet, roles.prefill[0]!);
  await eventually("its KV is booked", async () => (await debtOf(router, patient!.pid)) > 0, LONG_MS);
  await eventually("one engine was restarted for it", () => lost(strict!) > before[1]!, LONG_MS);
  for (const one of allOf(fleet)) await eligible(router, one);
  await load.stop();
  assert.deepEqual(load.failed, [], "the other prefill serves, and a restart for debt breaks no stream");
  assert.deepEqual(lostIn(roles.decode), [before[0], before[1]! + 1]);
  assert.equal(router.logged("a restart of its engine is granted").length, 1);
  assert.match(String(strict!.logged("the engine is lost").at(-1)!["why"]), /KV that was never claimed/);
  assert.notEqual((await eligible(router, strict!)).info.kvAddress, info.kvAddress);
}

async function decodeDies(fleet: Fleet): Promise<void> {
  const { router, roles, load: begin } = fleet;
  const [other, dying] = roles.decode;
  const before = [lost(other!), lost(dying!)];
  const prefillBefore = lostIn(roles.prefill);
  const load = begin(12, 40);
  await eventually("it has legs", async () => (await find(router, dying!.pid)).load.running > 1, LONG_MS);
  process.kill(engineOf(dying!.pid).pids[0]!, "SIGKILL");
  await eventually("it is missed", () => lost(dying!) > before[1]!, LONG_MS);
  for (const one of allOf(fleet)) await eligible(router, one);
  const served = load.sent.length;
  await eventually("all go on", () => load.sent.length > served + 24, LONG_MS);
  await load.stop();
  // A prefill engine that hangs still has the legs on which it hangs.
  for (const one of roles.prefill)
    await eventually("it has no leg", async () => (await find(router, one.pid)).load.running === 0, LONG_MS);
  for (const one of allOf(fleet)) await eligible(router, one);
  assert.deepEqual([lost(other!), lost(dying!)], [before[0], before[1]! + 1]);
  for (const [index, one] of roles.prefill.entries())
    for (const { why } of one.logged("the engine is lost").slice(prefillBefore[index]))
      assert.match(String(why), /wedged/);
}

/** The last one, because it stays sick. */
async function sickPrefill(fleet: Fleet): Promise<void> {
  const { router, roles, load: begin } = fleet;
  const before = lostIn(allOf(fleet));
  const debts = await Promise.all(roles.decode.map((one) => debtOf(router, one.pid)));
  const failedBefore = router.logged("a probe failed").length;
  // Many short ones: an instance on which legs failed gets few while the other has none in it.
  const load = begin(48, 4);
  const body = JSON.stringify({ kind: "refuse", status: 500 });
  const sickened = await askEngine(engineOf(roles.prefill[0]!.pid).url, "/sim/fault", { method: "POST", body });
  assert.equal(sickened.status, 200);
  const probed = (times: number): boolean => router.logged("a probe failed").length >= failedBefore + times;
  await eventually("a probe fails on it", () => probed(1), LONG_MS);
  const outAtMs = Date.now();
  await eventually("and again", () => probed(3), LONG_MS);
  await load.stop();
  assert.deepEqual(
    load.failed.filter(({ startedMs }) => startedMs > outAtMs),
    [],
    "the other prefill serves",
  );
  assert.deepEqual(lostIn(allOf(fleet)), before);
  assert.deepEqual(await Promise.all(roles.decode.map((one) => debtOf(router, one.pid))), debts);
}
