// `npm run bench -- fleet`: CPU time that a request costs the middle of the router, by size of the fleet, in one run:
// admission, placement, both legs, their books, the retry budget and the receipt. Its instances are one server that
// reports load for all of them; their legs answer at once from memory, so neither HTTP nor gRPC counts. `PLACED` is the
// part that depends on the fleet: finding the model, placing, and booking both legs and their ends.
import { create } from "@bufbuild/protobuf";
import { type Info, InfoSchema, InstanceService, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { startLife, type Started } from "../../../services/common/lifecycle.ts";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { choice, defineConfig, integer, loadConfig, StartError, text } from "../../../services/common/config.ts";
import { SILENT } from "../../../services/common/log.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { createAdmission } from "../../../services/router/admission/admission.ts";
import { POLICY_NAMES, type PolicyName, routerConfig } from "../../../services/router/config.ts";
import type { InstanceLink } from "../../../services/router/leg/instance-link.ts";
import { createPlacer, Exclusions } from "../../../services/router/placement/placement.ts";
import { Picker } from "../../../services/router/placement/policies.ts";
import { createPool } from "../../../services/router/pool/pool.ts";
import { startProbes } from "../../../services/router/probe/schedule.ts";
import { createRelay } from "../../../services/router/relay/relay.ts";
import { createReceiptDraft } from "../../../services/router/request/receipt.ts";
import type { AnswerEnd, AnswerSink, RelayRequest } from "../../../services/router/request/request.ts";
import { defineService } from "../../../services/rpc/service.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { renderTable } from "../../common/table.ts";
import { percentile } from "../statistics.ts";
import { writeJson } from "./output.ts";

/** Numbers of prefill instances; each fleet has as many decode instances. */
const SIZES = [1, 2, 8, 16, 64];
const BATCH = 500;
const WARM_UP = 10 * BATCH;

const fleetBenchConfig = defineConfig(
  "bench fleet",
  {
    requests: integer("requests", "Requests per fleet size.", {
      default: 20_000,
      min: BATCH,
      max: 10_000_000,
    }),
    policy: choice("policy", "Policy for prefill and decode.", POLICY_NAMES, {
      default: "least-load",
    }),
    ratio: integer(
      "ratio",
      "Largest allowed cost of the largest fleet, relative to the smallest. Exit with 1 if the cost is higher.",
      { default: 130, min: 100, max: 100_000, unit: "%" },
    ),
    json: text("json", "File to write all figures to.", { optional: true }),
  },
  {
    summary: "Measures what a request costs the middle of the router, by fleet size.",
    usage: "npm run bench -- fleet",
  },
);

/** CPU time of this process. */
interface Figure {
  readonly size: number;
  readonly requestUs: number;
  readonly placedUs: number;
  /** Of a placement after a standing changed, which makes a new view. */
  readonly changeUs: number;
}

export async function runFleetBench(argv: readonly string[]): Promise<void> {
  const config = loadConfig(fleetBenchConfig, { argv, env: process.env });
  await using instances = await startInstances();
  const fleets = await Promise.all(SIZES.map((size) => startFleet(size, instances.address, config.policy)));
  const works = fleets.map(({ parts }) => parts);
  await measure(works, WARM_UP); // Compiles the code.
  const figures = await measure(works, config.requests);
  for (const fleet of fleets) await fleet.stop(0);
  const [smallest, largest] = [figures[0]!, figures.at(-1)!];
  const ratio = largest.requestUs / smallest.requestUs;
  process.stdout.write(
    `${renderTable(
      figures,
      [
        { title: "FLEET", cell: ({ size }) => `${size}P${size}D` },
        { title: "A REQUEST", align: "right", cell: ({ requestUs }) => `${requestUs.toFixed(1)} us` },
        { title: "PLACED", align: "right", cell: ({ placedUs }) => `${placedUs.toFixed(2)} us` },
        { title: "A NEW VIEW", align: "right", cell: ({ changeUs }) => `${changeUs.toFixed(1)} us` },
      ],
      true,
    )}\n\n${largest.size}P${largest.size}D costs ${ratio.toFixed(2)} times ${smallest.size}P${smallest.size}D.\n`,
  );
  if (config.json !== undefined) writeJson(config.json, { node: process.version, figures, ratio });
  if (ratio * 100 > config.ratio) throw new StartError(`The ratio is above the limit of ${config.ratio / 100}.`);
}

/** What is measured of one fleet. */
interface Work {
  readonly size: number;
  request(): Promise<void>;
  place(): Promise<void>;
  change(): Promise<void>;
}

/** All fleets take turns, and each figure is the 10th percentile of its batches: other work only ever adds to them. */
async function measure(works: readonly Work[], requests: number): Promise<Figure[]> {
  const seen = works.map(() => ({ request: [] as number[], place: [] as number[], change: [] as number[] }));
  for (let done = 0; done < requests; done += BATCH) {
    for (const [index, work] of works.entries()) {
      seen[index]!.request.push(await cpuUs(BATCH, work.request));
      seen[index]!.place.push(await cpuUs(BATCH, work.place));
      seen[index]!.change.push(await cpuUs(BATCH / 50, work.change));
      // The instances' heartbeats are read here.
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }
  const low = (batches: number[]): number =>
    percentile(
      batches.sort((a, b) => a - b),
      0.1,
    );
  return works.map(({ size }, index) => {
    const { request, place, change } = seen[index]!;
    return { size, requestUs: low(request), placedUs: low(place), changeUs: low(change) };
  });
}

/** CPU time of this process for one call, in us. */
async function cpuUs(calls: number, call: () => Promise<void>): Promise<number> {
  const before = process.cpuUsage();
  for (let done = 0; done < calls; done += 1) await call();
  const { user, system } = process.cpuUsage(before);
  return (user + system) / calls;
}

function startFleet(size: number, address: string, policy: PolicyName): Promise<Started<Work>> {
  return startLife<Work>(async (running) => {
    const metrics = createMetrics();
    await using pool = createPool({ log: SILENT, clock: systemClock, metrics });
    using deadlines = new Deadlines(systemClock);
    const settings = loadConfig(routerConfig, {
      argv: [`--prefill.policy=${policy}`, `--decode.policy=${policy}`],
      env: {},
    });
    await using relay = createRelay({
      pool,
      placement: settings.placement,
      limits: settings.relay,
      metrics,
      log: SILENT,
      clock: systemClock,
      deadlines,
      linkTo: () => ANSWERS_AT_ONCE,
    });
    using _probes = startProbes({ pool, prober: relay.prober, clock: systemClock, metrics });
    const admission = createAdmission({
      capacity: (model) => pool.view.models.get(model)?.slots ?? 0,
      lack: (model) => pool.view.models.get(model)?.lack(false),
      queue: settings.queue,
      clock: systemClock,
      deadlines,
    });
    pool.onChange(admission.poke);
    const infos = Array.from({ length: 2 * size }, (_, index) => infoOf(index, address));
    pool.update(infos);
    const model = (): { readonly prefills: readonly unknown[] } | undefined => pool.view.models.get(REQUEST.model);
    while (model()?.prefills.length !== size || pool.view.decode.some(({ standing }) => standing.kind !== "serves"))
      await new Promise((resolve) => setTimeout(resolve, 20));

    const picker = () => new Picker(() => policy);
    const placer = createPlacer(pool, { prefill: picker(), decode: picker() });
    const never = new AbortController().signal;
    const exclusions = new Exclusions();
    const request = async (): Promise<void> => {
      const { id: requestId, path, model, stream } = REQUEST;
      const asked = { requestId, clientId: undefined, path, model, stream, tenant: "", priority: 0 };
      const receipt = createReceiptDraft({ ...asked, startedUnixMs: 0 });
      const admitted = await admission.acquire(never, REQUEST);
      const sink: AnswerSink = { start() {}, write: () => true, onDrain: undefined };
      const { completionTokens } = await relay.run(REQUEST, sink, receipt, admitted, never);
      admitted.release();
      if (completionTokens !== END.completionTokens) throw new Error("the answer is not whole");
    };
    const place = async (): Promise<void> => {
      if (pool.view.models.get(REQUEST.model)?.lack(false) !== undefined) throw new Error("the fleet does not serve");
      const slot = await admission.acquire(never, REQUEST);
      const { prefill, decode } = placer.place({ model: REQUEST.model, tokens: 100, strict: false }, exclusions);
      pool.legStarted(prefill!, 100);
      pool.legStarted(decode!);
      pool.prefilled(prefill!, 100, 10);
      pool.legEnded(prefill!, "good");
      pool.pairEnded(prefill!, decode!, "good");
      pool.legEnded(decode!, "good");
      slot.release();
    };
    const change = (): Promise<void> => {
      pool.update(infos);
      return place();
    };
    await running({ size, request, place, change });
  });
}

const REQUEST: RelayRequest = {
  id: "cmpl-bench",
  path: "/v1/completions",
  model: "bench",
  body: Buffer.from(JSON.stringify({ model: "bench", prompt: "x".repeat(400), max_tokens: 1, stream: true })),
  stream: true,
  choices: 1,
  prompts: 1,
  promptIsList: false,
  includeUsage: false,
  createdUnixS: 0,
};
const END: AnswerEnd = { finishReason: "length", promptTokens: 100, completionTokens: 1 };
const EVENTS = Buffer.from('data: {"choices":[{"index":0,"text":"x","finish_reason":"length"}]}\n\n');

/** Answers each message in a later turn, as a network would. */
const ANSWERS_AT_ONCE: InstanceLink = {
  reserve(_reservation, listener) {
    queueMicrotask(() => listener.onReserved(true));
    return {
      start: () =>
        queueMicrotask(() => {
          listener.onEvents(EVENTS);
          listener.onCompleted(END);
        }),
      abandon() {},
      cut() {},
      pause() {},
      resume() {},
    };
  },
  prefill(_order, listener) {
    const ticket = { text: "", cachedTokens: 0 };
    queueMicrotask(() =>
      listener.onDone({ ticket, promptTokens: END.promptTokens, kvBytes: 1_024n, firstLogprob: undefined }),
    );
    return { cancel() {} };
  },
};

function infoOf(index: number, grpcAddress: string): Info {
  const role = index % 2 === 0 ? Role.PREFILL : Role.DECODE;
  return create(InfoSchema, {
    instanceId: `${Role[role].toLowerCase()}-${String(index).padStart(4, "0")}`,
    role,
    model: REQUEST.model,
    grpcAddress,
    connector: "p2p-zmq",
    engine: "sim",
    slotLimit: 64,
  });
}

/** Reports load for every instance that dials it. */
async function startInstances(): Promise<{ readonly address: string } & AsyncDisposable> {
  const service = defineService(
    InstanceService,
    {
      getInfo: async () => ({}),
      drain: async () => ({}),
      undrain: async () => ({}),
      diagnose: async () => ({}),
      async *watchLoad(_request, { signal, closing }) {
        while (!signal.aborted && !closing.aborted) {
          yield { load: { state: State.SERVING, freeSlots: 64 } };
          await new Promise((resolve) => setTimeout(resolve, 1_000).unref());
        }
      },
    },
    { access: "open" },
  );
  return serveRpc({ listen: "127.0.0.1:0", services: [service], log: SILENT, graceMs: 0 });
}
