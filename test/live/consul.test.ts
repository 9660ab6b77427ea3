// What Consul must hold up to, with real agents, real processes and real signals. Times are printed as they were; the
// limits of the tests are wider than the promises, so that a busy machine fails none.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { freeConsulPorts, startConsul, type TestConsul } from "../support/consul.ts";
import { eligible, startProcess, startRouterProcess, type TestProcess, type TestRouter } from "../support/processes.ts";
import { skip } from "../support/skip.ts";
import { steadyLoad, type SteadyLoad } from "../support/steady-load.ts";
import { consul } from "../support/tools.ts";
import { eventually } from "../support/waits.ts";

/** The outage of the promise has 60 s: TANDEM_TEST_OUTAGE_S=60. */
const OUTAGE_MS = Number(process.env["TANDEM_TEST_OUTAGE_S"] ?? 6) * 1000;
const LONG_MS = 60_000;

const say = (text: string): void => console.log(`      ${text}`);

interface Fleet extends AsyncDisposable {
  readonly router: TestRouter;
  readonly prefills: readonly TestProcess[];
  readonly decodes: readonly TestProcess[];
  startDecode(): TestProcess;
}

/** @param address Of the Consul agent that all of them use. */
async function startFleet(
  address: string,
  o: { prefill: number; decode: number; flags?: readonly string[] },
): Promise<Fleet> {
  const flags = ["--registry.kind", "consul", "--consul.address", address];
  const router = await startRouterProcess(flags);
  const all: TestProcess[] = [router];
  const start = (role: "prefill" | "decode", index: number): TestProcess => {
    const instance = startProcess(role, [
      ...flags,
      "--listen",
      "127.0.0.1:0",
      "--engine",
      "sim",
      "--kv.listen",
      String(role === "prefill" ? 31_001 + index : 32_001 + index),
      ...(o.flags ?? []),
    ]);
    all.push(instance);
    return instance;
  };
  const prefills = Array.from({ length: o.prefill }, (_, index) => start("prefill", index));
  const decodes = Array.from({ length: o.decode }, (_, index) => start("decode", index));
  try {
    for (const instance of [...prefills, ...decodes]) await eligible(router, instance);
  } catch (error) {
    const said = all.map((one) => one.output()).join("\n");
    await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    throw new Error(`The fleet did not start:\n${said}`, { cause: error });
  }
  return {
    router,
    prefills,
    decodes,
    startDecode: () => start("decode", all.length),
    async [Symbol.asyncDispose]() {
      await Promise.all(all.map((one) => one[Symbol.asyncDispose]()));
    },
  };
}

/** When this router began legs on an instance: Unix milliseconds, ascending. */
async function legStarts(router: TestRouter, instanceId: string): Promise<number[]> {
  const { receipts = [] } = await router.call("ListRequests", { limit: 1000 });
  return receipts
    .flatMap((receipt: any) =>
      receipt.legs
        .filter((leg: any) => leg.decodeInstanceId === instanceId || leg.prefillInstanceId === instanceId)
        .map((leg: any) => Number(receipt.startedUnixMs) + (leg.startedMs ?? receipt.queueMs ?? 0)),
    )
    .sort((a: number, b: number) => a - b);
}

const untilMore = (load: SteadyLoad, more: number): Promise<unknown> => {
  const { length } = load.sent;
  return eventually(`${more} more requests`, () => load.sent.length >= length + more, LONG_MS);
};

describe("Tandem on Consul", function () {
  this.timeout(180_000 + 3 * OUTAGE_MS);
  before(async function () {
    this.timeout(1_800_000);
    const found = await consul();
    if ("missing" in found) skip(this, found.missing);
  });

  describe("with one agent", () => {
    let agent: TestConsul;
    before(async () => {
      agent = await startConsul();
    });
    after(() => agent?.kill());

    it("gives a killed instance no leg after half a second, a frozen one none after two", async () => {
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 3 });
      const { router } = fleet;
      const load = steadyLoad([router.url], { clients: 12 });
      await untilMore(load, 24);
      for (const [index, signal] of ["SIGKILL", "SIGSTOP"].entries() as ArrayIterator<[number, NodeJS.Signals]>) {
        const victim = fleet.decodes[index]!;
        const { info } = await eligible(router, victim);
        const atMs = Date.now();
        victim.signal(signal);
        await eventually(
          "the router has noticed",
          async () =>
            (await router.call("ListInstances")).instances.every(
              (one: any) => one.info.pid !== victim.pid || one.eligible !== true,
            ),
          LONG_MS,
        );
        const noticedAtMs = Date.now();
        await untilMore(load, 60);
        const last = (await legStarts(router, info.instanceId)).at(-1)!;
        say(
          `${signal}: noticed after ${noticedAtMs - atMs} ms; last leg begun ${Math.max(0, last - atMs).toFixed(0)} ms after it`,
        );
        assert.ok(last <= noticedAtMs, `a leg began ${last - noticedAtMs} ms after it was noticed`);
        const late = load.failed.filter(({ startedMs }) => startedMs > noticedAtMs);
        assert.deepEqual(late, []);
      }
      await load.stop();
      say(`${load.sent.length} requests, ${load.failed.length} of them lost with an instance that ran them`);
    });

    it("shows a killed or frozen process red, in both of its checks, and which ranks and slots it has", async () => {
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 2 });
      const entryOf = async ({ pid }: TestProcess): Promise<any> =>
        (await agent.get("/v1/health/service/tandem-decode")).find((one: any) => one.Service.Meta.pid === String(pid));
      const checksOf = async (instance: TestProcess): Promise<Record<string, any>> =>
        Object.fromEntries((await entryOf(instance)).Checks.map((check: any) => [check.Name, check]));
      const [first, second] = fleet.decodes as [TestProcess, TestProcess];
      await eventually("its state is shown", async () =>
        (await checksOf(first))["state"].Output.startsWith("serving; 256 of 256 slots free at "),
      );
      assert.equal((await entryOf(first)).Service.Meta.tp_size, "1");
      for (const [victim, signal] of [
        [first, "SIGKILL"],
        [second, "SIGSTOP"],
      ] as const) {
        const atMs = performance.now();
        const redAfterMs = (name: string): Promise<number> =>
          eventually(
            `${name} is red after ${signal}`,
            async () => (await checksOf(victim))[name].Status === "critical" && performance.now() - atMs,
            LONG_MS,
          );
        victim.signal(signal);
        const [health, state] = await Promise.all([redAfterMs("health"), redAfterMs("state")]);
        say(`${signal}: health red after ${health.toFixed(0)} ms, state after ${state.toFixed(0)} ms`);
        assert.match((await checksOf(victim))["state"].Output, /^TTL expired/);
      }
    });

    it("loses nothing when an instance is stopped, and gives it no leg after it has left", async () => {
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 2 });
      const { router } = fleet;
      const load = steadyLoad([router.url], { clients: 8 });
      await untilMore(load, 16);
      const [leaving] = fleet.decodes;
      const { info } = await eligible(router, leaving!);
      const left = eventually(
        "it has left Consul",
        async () => (await agent.get(`/v1/agent/service/${info.instanceId}`)) === undefined && Date.now(),
        LONG_MS,
      );
      const toldMs = Date.now();
      leaving!.signal("SIGTERM");
      const leftMs = (await left) as number;
      const heardMs = (await eventually(
        "the router has heard of it",
        async () =>
          (
            await router.call("ListInstances")
          ).instances.every((one: any) => one.info.pid !== leaving!.pid || one.eligible !== true) && Date.now(),
        LONG_MS,
      )) as number;
      await untilMore(load, 30);
      await load.stop();
      const last = (await legStarts(router, info.instanceId)).at(-1)!;
      say(
        `SIGTERM: left Consul after ${leftMs - toldMs} ms; last leg begun ${(last - toldMs).toFixed(0)} ms after the signal, ${(last - leftMs).toFixed(0)} ms after it had left`,
      );
      assert.deepEqual(load.failed, []);
      assert.ok(last <= heardMs, `a leg began ${last - heardMs} ms after the router had heard of it`);
    });

    it("gives a new instance work once its checks pass", async () => {
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 1 });
      const { router } = fleet;
      const load = steadyLoad([router.url], { clients: 8, tokens: 10 });
      await untilMore(load, 16);
      const added = fleet.startDecode();
      const passing = eventually(
        "its checks pass",
        async () => {
          const entries = await agent.get("/v1/health/service/tandem-decode?passing=true");
          return entries.some((entry: any) => entry.Service.Meta.pid === String(added.pid)) && Date.now();
        },
        LONG_MS,
      );
      const passingMs = (await passing) as number;
      const { info } = await eligible(router, added);
      await untilMore(load, 30);
      await load.stop();
      const [first] = await legStarts(router, info.instanceId);
      say(`first leg ${(first! - passingMs).toFixed(0)} ms after its checks passed`);
      assert.deepEqual(load.failed, []);
    });

    it("keeps KV slots from being given twice by two routers, and settles what a killed router left", async () => {
      const slots = 4;
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 1, flags: ["--slots", String(slots)] });
      await using second = await startRouterProcess(["--registry.kind", "consul", "--consul.address", agent.address]);
      await eligible(second, fleet.decodes[0]!);
      const load = steadyLoad([fleet.router.url, second.url], { clients: 16, tokens: 15 });
      const loadOf = async (router: TestRouter): Promise<any> =>
        (await router.call("ListInstances")).instances.find((one: any) => one.info.pid === fleet.decodes[0]!.pid).load;
      let most = 0;
      let looking = true;
      const looker = (async () => {
        while (looking) {
          const { running = 0, reserved = 0 } = await loadOf(fleet.router);
          most = Math.max(most, running + reserved);
          await sleep(20);
        }
      })();
      await untilMore(load, 60);
      const killedMs = Date.now();
      second.signal("SIGKILL");
      await untilMore(load, 40);
      looking = false;
      await Promise.all([load.stop(), looker]);
      await eventually(
        "all slots are free",
        async () => {
          const { freeSlots = 0, kvOrphans = 0 } = await loadOf(fleet.router);
          return freeSlots === slots && kvOrphans === 0;
        },
        LONG_MS,
      );
      const others = load.failed.filter(
        ({ startedMs, endedMs, error }) => endedMs < killedMs && startedMs < killedMs && error !== undefined,
      );
      say(`at most ${most} of ${slots} slots in use by two routers; after one was killed all came free`);
      assert.ok(most <= slots, `${most} legs on ${slots} slots`);
      assert.deepEqual(others, []);
    });
  });

  it("serves on while Consul is away, notices a death meanwhile, and finds all registered again", async () => {
    const ports = await freeConsulPorts();
    let agent = await startConsul({ ports });
    try {
      await using fleet = await startFleet(agent.address, { prefill: 1, decode: 3 });
      const { router } = fleet;
      const up = async (): Promise<number> =>
        Number(/^tandem_registry_up\{[^}]*\} (\d)$/m.exec(await (await fetch(`${router.url}/metrics`)).text())![1]);
      await eventually("the registry is up", async () => (await up()) === 1);
      let load = steadyLoad([router.url], { clients: 8 });
      await untilMore(load, 16);
      const goneMs = Date.now();
      await agent.kill();
      await eventually("the outage shows in the metric", async () => (await up()) === 0);
      const { registry } = await router.call("GetConfig");
      assert.equal(registry.kind, "consul");
      assert.notEqual(registry.up, true);
      assert.match(registry.error, /does not answer/);
      const { diagnoses } = await router.call("Diagnose", { withoutProbes: true });
      const { message } = diagnoses.find((one: any) => one.finding.check === "registry").finding;
      assert.match(message, /does not answer.* The router goes on with the instances it knows/);
      await eventually(
        "it is logged",
        () => router.logged("Consul is away; the router goes on with the instances it knows").length === 1,
      );
      // The death of an instance, while no request runs that could be lost with it.
      await load.stop();
      assert.deepEqual(load.failed, []);
      const [victim] = fleet.decodes;
      const killedMs = Date.now();
      victim!.signal("SIGKILL");
      await eventually(
        "the death is noticed",
        async () =>
          (await router.call("ListInstances")).instances.some(
            (one: any) => one.info.pid === victim!.pid && one.eligible !== true,
          ),
        LONG_MS,
      );
      say(`Consul away: a killed instance noticed after ${Date.now() - killedMs} ms`);
      const before = load.sent.length;
      load = steadyLoad([router.url], { clients: 8 });
      await sleep(Math.max(0, goneMs + OUTAGE_MS - Date.now()));
      await untilMore(load, 16);
      assert.ok(
        load.sent.some(({ degraded }) => degraded.includes("stale-registry")),
        "no answer says that the registry is stale",
      );
      const backMs = Date.now();
      agent = await startConsul({ ports });
      const answersMs = Date.now();
      await eventually(
        "all are registered again",
        async () => {
          const counts = await Promise.all(
            ["router", "prefill", "decode"].map(
              async (role) => (await agent.get(`/v1/health/service/tandem-${role}?passing=true`)).length,
            ),
          );
          return counts.join() === "1,1,2";
        },
        LONG_MS,
      );
      const againMs = Date.now();
      await eventually("the registry is up", async () => (await up()) === 1, LONG_MS);
      await untilMore(load, 30);
      await load.stop();
      say(
        `Consul away for ${((backMs - goneMs) / 1000).toFixed(1)} s: ${before + load.sent.length} requests, ${load.failed.length} failed; all registered again ${againMs - answersMs} ms after it answered`,
      );
      assert.deepEqual(load.failed, []);
      assert.equal((await router.call("GetConfig")).registry.up, true);
    } finally {
      await agent.kill();
    }
  });

  it("fails no request when a cluster of three servers loses its leader", async () => {
    const ports = [await freeConsulPorts(), await freeConsulPorts(), await freeConsulPorts()];
    const join = ports.flatMap(({ serfLan }) => ["-retry-join", `127.0.0.1:${serfLan}`]);
    const servers = await Promise.all(
      ports.map((mine, index) =>
        startConsul({
          ports: mine,
          dev: false,
          node: `server-${index + 1}`,
          flags: ["-server", "-bootstrap-expect", "3", "-retry-interval", "1s", ...join],
          config: { performance: { raft_multiplier: 1 } },
        }),
      ),
    );
    try {
      const leader = await eventually(
        "there is a leader",
        async () => {
          const address: string = await servers[0]!.get("/v1/status/leader");
          return servers.find(({ ports: { server } }) => address === `127.0.0.1:${server}`);
        },
        LONG_MS,
      );
      const follower = servers.find((server) => server !== leader)!;
      await using fleet = await startFleet(follower.address, { prefill: 1, decode: 2 });
      const load = steadyLoad([fleet.router.url], { clients: 8 });
      await untilMore(load, 16);
      const killedMs = Date.now();
      await leader.kill();
      await untilMore(load, 8);
      await eventually(
        "there is a new leader",
        async () => {
          const address: string = await follower.get("/v1/status/leader");
          return address !== "" && address !== `127.0.0.1:${leader.ports.server}`;
        },
        LONG_MS,
      );
      const electedMs = Date.now() - killedMs;
      const added = fleet.startDecode();
      await eligible(fleet.router, added);
      await untilMore(load, 16);
      await load.stop();
      say(`leader killed: a new one after ${electedMs} ms; ${load.sent.length} requests, ${load.failed.length} failed`);
      assert.deepEqual(load.failed, []);
    } finally {
      await Promise.all(servers.map((server) => server.kill()));
    }
  });
});
