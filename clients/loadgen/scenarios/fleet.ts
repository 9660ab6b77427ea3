// `npm run bench -- fleet`: what the router's fleet view costs per request: looking up its model, placing the request,
// booking both legs and their ends, with admission and probes listening as in a router. Measured by size of the fleet,
// in one run. No request is sent; the instances are one server that reports load for all of them.
import { create } from "@bufbuild/protobuf";
import { type Info, InfoSchema, InstanceService, Role, State } from "#gen/tandem/instance/v1/instance_pb.js";
import { systemClock } from "../../../services/common/clock.ts";
import { Deadlines } from "../../../services/common/deadlines.ts";
import { choice, defineConfig, integer, loadConfig, StartError, text } from "../../../services/common/config.ts";
import type { Log } from "../../../services/common/log.ts";
import { createMetrics } from "../../../services/common/metrics.ts";
import { defineService } from "../../../services/rpc/service.ts";
import { serveRpc } from "../../../services/rpc/server.ts";
import { renderTable } from "../../common/table.ts";
import { writeJson } from "./output.ts";

/** Numbers of prefill instances; each fleet has as many decode instances. */
const SIZES = [1, 2, 8, 16, 64];
const BATCH = 500;

const fleetBenchConfig = defineConfig(
  "bench fleet",
  {
    requests: integer("requests", "Requests per fleet size.", {
      default: 50_000,
      min: BATCH,
      max: 10_000_000,
    }),
    policy: choice("policy", "Policy for prefill and decode.", ["least-load", "round-robin"], {
      default: "least-load",
    }),
    ratio: integer(
      "ratio",
      "Largest allowed cost of the largest fleet, relative to the smallest. Exit with 1 if the cost is higher.",
      { default: 130, min: 100, max: 100_000, unit: "%" },
    ),
    json: text("json", "File to write all figures to.", { optional: true }),
  },
  { summary: "Measures what the router's fleet view costs per request.", usage: "npm run bench -- fleet" },
);

interface Figure {
  readonly size: number;
  /** CPU time of this process per request. */
  readonly requestUs: number;
  /** The same, if each request changes a standing: an instance is drained and taken back. */
  readonly changeUs: number;
}

export async function runFleetBench(argv: readonly string[]): Promise<void> {
  const config = loadConfig(fleetBenchConfig, { argv, env: process.env });
  await using instances = await startInstances();
  const figures: Figure[] = [];
  for (const size of SIZES) figures.push(await measure(size, instances.address, config.requests, config.policy));
  const [smallest, largest] = [figures[0]!, figures.at(-1)!];
  const ratio = largest.requestUs / smallest.requestUs;
  process.stdout.write(
    `${renderTable(
      figures,
      [
        { title: "FLEET", cell: ({ size }) => `${size}P${size}D` },
        { title: "A REQUEST", align: "right", cell: ({ requestUs }) => `${requestUs.toFixed(2)} us` },
        { title: "A NEW VIEW", align: "right", cell: ({ changeUs }) => `${changeUs.toFixed(1)} us` },
      ],
      true,
    )}\n\n${largest.size}P${largest.size}D costs ${ratio.toFixed(2)} times ${smallest.size}P${smallest.size}D.\n`,
  );
  if (config.json !== undefined) writeJson(config.json, { node: process.version, figures, ratio });
  if (ratio * 100 > config.ratio) throw new StartError(`The ratio is above the limit of ${config.ratio / 100}.`);
}

async function measure(size: number, address: string, requests: number, policy: string): Promise<Figure> {
  const [{ createPool }, { createPlacer, Exclusions }, { policyOf }, { startProbes }, { createAdmission }] =
    await Promise.all([
      import("../../../services/router/pool/pool.ts"),
      import("../../../services/router/placement/placement.ts"),
      import("../../../services/router/placement/policies.ts"),
      import("../../../services/router/probe/schedule.ts"),
      import("../../../services/router/admission/admission.ts"),
    ]);
  const metrics = createMetrics();
  await using pool = createPool({ log: SILENT, clock: systemClock, metrics });
  const prober = { probe: () => Promise.reject(new Error("nothing is out")), unsettled: () => 0 };
  using _probes = startProbes({ pool, prober, clock: systemClock, metrics });
  using deadlines = new Deadlines(systemClock);
  const admission = createAdmission({
    capacity: (model) => pool.view.models.get(model)?.slots ?? 0,
    lack: (model) => pool.view.models.get(model)?.lack(false),
    queue: { current: { limit: 256, timeoutMs: 60_000 } },
    clock: systemClock,
    deadlines,
  });
  pool.onChange(admission.poke);
  const infos = Array.from({ length: 2 * size }, (_, index) => infoOf(index, address));
  pool.update(infos);
  const model = (): { readonly prefills: readonly unknown[] } | undefined => pool.view.models.get("bench");
  while (model()?.prefills.length !== size || pool.view.decode.some(({ standing }) => standing.kind !== "serves"))
    await new Promise((resolve) => setTimeout(resolve, 20));

  const policies = { prefill: policyOf(policy as "least-load"), decode: policyOf(policy as "least-load") };
  const placer = createPlacer(pool, policies);
  const never = new AbortController().signal;
  const exclusions = new Exclusions();
  const request = async (): Promise<void> => {
    if (pool.view.models.get("bench")?.lack(false) !== undefined) throw new Error("the fleet does not serve");
    const slot = await admission.acquire(never, { model: "bench" });
    const { prefill, decode } = placer.place({ model: "bench", tokens: 100, strict: false }, exclusions);
    pool.legStarted(prefill!, 100);
    pool.legStarted(decode!);
    pool.prefilled(prefill!, 100, 10);
    pool.legEnded(prefill!, "good");
    pool.pairEnded(prefill!, decode!, "good");
    pool.legEnded(decode!, "good");
    slot.release();
  };
  const cpuUs = async (count: number, one: () => Promise<void>): Promise<number> => {
    let best = Infinity;
    // The best of several, because other work on the machine only slows the process down.
    for (let round = 0; round < 5; round += 1) {
      const before = process.cpuUsage();
      for (let done = 0; done < count / 5; done += 1) await one();
      const { user, system } = process.cpuUsage(before);
      best = Math.min(best, (user + system) / (count / 5));
      await new Promise((resolve) => setImmediate(resolve));
    }
    return best;
  };
  await cpuUs(2_000, request); // Warm-up: compiles the code.
  const requestUs = await cpuUs(requests, request);
  const changeUs = await cpuUs(Math.max(BATCH, requests / 50), async () => {
    pool.update(infos);
    await request();
  });
  return { size, requestUs, changeUs };
}

function infoOf(index: number, grpcAddress: string): Info {
  const role = index % 2 === 0 ? Role.PREFILL : Role.DECODE;
  return create(InfoSchema, {
    instanceId: `${Role[role].toLowerCase()}-${String(index).padStart(4, "0")}`,
    role,
    model: "bench",
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

const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {}, child: () => SILENT };
