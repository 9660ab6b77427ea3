// What a process tells the Consul agent of itself, against a scripted agent.
import assert from "node:assert/strict";
import { text as bodyOf } from "node:stream/consumers";
import { defineConfig, loadConfig, section } from "../../services/common/config.ts";
import { registerInConsul } from "../../services/discovery/consul.ts";
import { consulCheckSettings, consulSettings } from "../../services/discovery/consul-settings.ts";
import type { Registration, SelfReport } from "../../services/discovery/registry.ts";
import { logSink } from "../support/log-sink.ts";
import { manualClock, type ManualClock } from "../support/manual-clock.ts";
import { hold, json, refuse, scriptedConsul, type Answer, type ScriptedConsul } from "../support/scripted-consul.ts";
import { eventually } from "../support/waits.ts";

const definition = defineConfig("test", { consul: section("Consul", { ...consulSettings, ...consulCheckSettings }) });
const SERVING: SelfReport = { serving: true, text: "serving" };

/** Takes what is registered and reported, and holds the question for the own entry. */
function agent(reports: string[], registered: any[] = []): Answer {
  return (response, asked) => {
    const note = asked.query.get("note");
    if (note !== null) reports.push(`${asked.path.split("/")[4]} ${note}`);
    if (asked.path.endsWith("/register"))
      void bodyOf(asked.request).then((body) => {
        registered.push(JSON.parse(body));
        json(1, null)(response, asked);
      });
    else if (asked.query.has("hash")) hold(response, asked);
    else json(1, {}, { "x-consul-contenthash": "h" })(response, asked);
  };
}

interface Registered extends AsyncDisposable {
  readonly registration: Registration;
  readonly sink: ReturnType<typeof logSink>;
  readonly clock: ManualClock;
}

async function register(
  consul: ScriptedConsul,
  standing: () => SelfReport,
  o: { flags?: readonly string[]; ttlMs?: number } = {},
): Promise<Registered> {
  const sink = logSink();
  const clock = manualClock();
  const argv = ["--consul.address", consul.address, ...(o.flags ?? [])];
  const record = {
    id: "decode-1",
    role: "decode" as const,
    address: "10.0.0.7:3201",
    grpcAddress: "10.0.0.7:3201",
    meta: { model: "m" },
    tags: ["m"],
  };
  const { consul: config } = loadConfig(definition, { argv, env: {} });
  const own = { deployment: "default", ...o, log: sink.log, clock };
  const registration = registerInConsul(config, () => record, standing, own);
  return {
    registration,
    sink,
    clock,
    async [Symbol.asyncDispose]() {
      await registration[Symbol.asyncDispose]();
      consul.close();
    },
  };
}

describe("a process in Consul", () => {
  it("has a check that the agent makes, with its own timeout, and one that fails unless it is renewed", async () => {
    const registered: any[] = [];
    const consul = await scriptedConsul([agent([], registered)]);
    await using _ = await register(consul, () => SERVING);
    const [body] = await eventually("it is registered", () => registered.length > 0 && registered);
    assert.deepEqual(body, {
      Name: "tandem-decode",
      ID: "decode-1",
      Tags: ["default", "m"],
      Meta: { deployment: "default", model: "m" },
      Address: "10.0.0.7",
      Port: 3201,
      Checks: [
        {
          CheckID: "service:decode-1:health",
          Name: "health",
          Notes: "What grpc.health.v1 answers the Consul agent.",
          GRPC: "10.0.0.7:3201/tandem",
          Interval: "1s",
          Timeout: "3s",
          Status: "critical",
          DeregisterCriticalServiceAfter: "60000ms",
        },
        {
          CheckID: "service:decode-1:state",
          Name: "state",
          Notes: "What the process reports of itself.",
          TTL: "5000ms",
          Status: "critical",
        },
      ],
    });
  });

  it("renews its state before that expires", async () => {
    const reports: string[] = [];
    await using out = await register(await scriptedConsul([agent(reports)]), () => SERVING, { ttlMs: 6_000 });
    await out.clock.untilPending();
    out.clock.advance(1_999);
    assert.equal(reports.length, 1);
    out.clock.advance(1);
    await out.clock.untilPending();
    assert.deepEqual(reports, ["pass serving", "pass serving"]);
  });

  it("reports a change at once", async () => {
    const reports: string[] = [];
    let standing: SelfReport = { serving: false, text: "draining: an operator asked" };
    const consul = await scriptedConsul([agent(reports)]);
    await using slow = await register(consul, () => standing, { ttlMs: 3_600_000 });
    await eventually("the drain is reported", () => reports.length === 1);
    standing = SERVING;
    slow.registration.update();
    await eventually("so is its end", () => reports.length === 2);
    assert.deepEqual(reports, ["fail draining: an operator asked", "pass serving"]);
  });

  it("logs each class of failure once, and then the registration", async () => {
    const lacks = `Permission denied: token with AccessorID '0-0' lacks permission 'service:write' on "tandem-decode"`;
    const reset: Answer = (response) => void response.socket!.destroy();
    const script = [
      reset,
      reset,
      refuse(403, "ACL not found"),
      refuse(403, lacks),
      refuse(403, lacks),
      refuse(400, "no"),
    ];
    await using out = await register(
      await scriptedConsul([...script, refuse(500, "No leader"), agent([])]),
      () => SERVING,
    );
    await eventually("it is registered", () => {
      out.clock.advance(1_000);
      return out.sink.events("registered in Consul").length === 1;
    });
    assert.deepEqual(
      out.sink.lines.filter(({ level }) => level !== "info").map(({ level, msg, policy }) => [level, msg, policy]),
      [
        ["warn", "Consul is away; will keep retrying to register", undefined],
        ["error", "Consul denies what this process needs; will keep retrying to register", undefined],
        [
          "error",
          "Consul denies what this process needs; will keep retrying to register",
          'service "tandem-decode" { policy = "write" }',
        ],
        ["warn", "Consul refuses what this process asks; will keep retrying to register", undefined],
      ],
    );
    const because = out.sink.lines.map((line) => String(line["because"]));
    assert.match(because[1]!, /doesn't know the token/);
    assert.match(because[3]!, /Consul answers 400: no/);
  });

  it("shows its free slots with the time, and renews them rarely", async () => {
    const reports: string[] = [];
    const consul = await scriptedConsul([agent(reports)]);
    let free = 64;
    const load = (): SelfReport => ({ serving: true, text: "serving", load: `${free--} of 64 slots free` });
    await using out = await register(consul, load, { ttlMs: 15_000 });
    for (let renewals = 0; renewals <= 6; renewals++) {
      await out.clock.untilPending();
      out.clock.advance(5_000);
    }
    assert.match(reports[0]!, /^pass serving; 6\d of 64 slots free at \d\d:\d\d:\d\d UTC$/);
    assert.equal(new Set(reports.slice(0, 7)).size, 3, "in half a minute");
  });
});
