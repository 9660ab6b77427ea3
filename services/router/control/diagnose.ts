// The doctor reports what is wrong, or would go wrong, with the models, the instances and the pairs. It reports what
// the router has decided, and a probe that it sends counts like any other probe, so doctor and router can't contradict
// each other. Each finding says what to do.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { FindingLevel, InstanceService, type FindingSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import type { DiagnosisSchema, RegistryStatusSchema } from "#gen/tandem/router/v1/router_pb.js";
import { asServiceError } from "../../common/errors.ts";
import type { UnprovenEntry } from "../../discovery/registry.ts";
import type { Instance, ModelView, Pool, Reason, Seen } from "../pool/pool.ts";
import type { Probes } from "../probe/schedule.ts";

type Diagnosis = MessageInitShape<typeof DiagnosisSchema>;
type FindingInit = MessageInitShape<typeof FindingSchema>;

const ASK_TIMEOUT_MS = 5_000;
/** Up to this many pairs (8 x 8) each pair is probed. In a larger fleet each instance is probed with one partner. */
const PAIR_LIMIT = 64;

export interface DiagnoseOptions {
  /** Without it no probes are sent. */
  readonly probes?: Pick<Probes, "now">;
  readonly signal: AbortSignal;
}

export async function diagnose(pool: Pick<Pool, "view">, o: DiagnoseOptions): Promise<Diagnosis[]> {
  const { view } = pool;
  const models = [...view.models.values()];
  const ofInstances = await Promise.all([
    ...view.prefill.map(async (seen) =>
      (await examine(seen, o.signal)).map((finding) => ({ prefillInstanceId: seen.instance.instanceId, finding })),
    ),
    ...view.decode.map(async (seen) =>
      (await examine(seen, o.signal)).map((finding) => ({ decodeInstanceId: seen.instance.instanceId, finding })),
    ),
  ]);
  // Pairs are probed one after another, because probes that wait for each other would be measured as slow.
  const ofPairs: Diagnosis[] = [];
  for (const model of models) {
    for (const [prefill, decode] of pairsToProbe(model)) {
      const finding = await examinePair(pool, prefill, decode, o);
      ofPairs.push({ prefillInstanceId: prefill.instanceId, decodeInstanceId: decode.instanceId, finding });
    }
  }
  const ofModels = models.length === 0 ? [NO_INSTANCES] : models.flatMap(examineModel);
  return [...ofModels.map((finding) => ({ finding })), ...ofInstances.flat(), ...ofPairs];
}

function finding(level: keyof typeof FindingLevel, check: string, message: string, cure = ""): FindingInit {
  return { level: FindingLevel[level], check, message, cure };
}

const NO_INSTANCES = finding(
  "ERROR",
  "instances",
  "No instance is registered.",
  "Start a prefill and a decode instance with tandem prefill and tandem decode, or all at once with tandem up.",
);

function examineModel(model: ModelView): FindingInit[] {
  const { name, prefill, decode } = model;
  const lack = model.lack(false);
  const pairs = model.prefills.reduce((sum, one) => sum + model.partnersOf(one).length, 0);
  const served = `The model \`${name}\` is served by ${prefill.length} prefill and ${decode.length} decode instances (${pairs} pairs).`;
  const cure =
    "See the findings of its instances below; start the missing instances with tandem prefill or tandem decode.";
  const found = [lack === undefined ? finding("OK", "model", served) : finding("ERROR", "model", lack, cure)];
  if (prefill.length === 1 && prefill[0]!.instance.info.connector === "p2p-nccl") {
    const risk = `The model \`${name}\` has one prefill instance, and P2P NCCL: a decode engine that dies wedges it, and no request is served until it has restarted.`;
    found.push(finding("WARNING", "spare_prefill", risk, "Run two prefill instances or more."));
  }
  return found;
}

/** Reasons that pass without help, or that an operator intended. */
const PASSING: ReadonlySet<Reason> = new Set(["starting", "draining", "suspect", "outrun", "left"]);

const CURES: Readonly<Partial<Record<Reason, string>>> = {
  draining: "Undrain the instance with RouterService.DrainInstance, or wait until it has stopped.",
  unreachable: "Check that its process runs, and that this router can reach its address.",
  denied: "Start router and instance with the same token and in the same version.",
  untrusted:
    "Give router and instance the same token, or certificates of the same authority. If the instance is not yours, " +
    "remove its entry from the registry.",
  silent: "Check whether its process or its host hangs.",
  unlisted: "Check why the registry reports the instance as dead or gone.",
  unmatched: "Start both roles with the same value.",
  unproven:
    "Check the logs of both engines. If decode does not answer from the KV it was sent, check its CUDA graphs, and that both engines run the same weights and number type.",
};

async function examine({ instance, standing }: Seen, signal: AbortSignal): Promise<FindingInit[]> {
  const found = [examineStanding(standing)];
  try {
    const client = instance.channel.client(InstanceService);
    found.push(...(await client.diagnose({}, { timeoutMs: ASK_TIMEOUT_MS, signal })).findings);
  } catch (error) {
    const message = `The instance did not answer the doctor: ${asServiceError(error).message}`;
    found.push(finding("UNKNOWN", "asked", message));
  }
  return found;
}

function examineStanding(standing: Seen["standing"]): FindingInit {
  const { text } = standing;
  if (standing.kind === "serves") return finding("OK", "standing", text === "" ? "It serves." : `It serves. ${text}`);
  const { reason } = standing;
  const message = `It gets no requests (${reason}): ${text}`;
  const cure = CURES[reason] ?? "Check its log; the findings below may give the cause.";
  return finding(PASSING.has(reason) ? "WARNING" : "ERROR", "standing", message, cure);
}

function pairsToProbe({ prefill, decode }: ModelView): (readonly [Instance, Instance])[] {
  const all = prefill.flatMap(({ instance }) => decode.map((other) => [instance, other.instance] as const));
  if (all.length <= PAIR_LIMIT || prefill.length === 0 || decode.length === 0) return all;
  const count = Math.max(prefill.length, decode.length);
  return Array.from({ length: count }, (_, index) => [
    prefill[index % prefill.length]!.instance,
    decode[index % decode.length]!.instance,
  ]);
}

async function examinePair(
  pool: Pick<Pool, "view">,
  prefill: Instance,
  decode: Instance,
  { probes, signal }: DiagnoseOptions,
): Promise<FindingInit> {
  const fault = pool.view.pairFault(prefill, decode);
  if (fault !== undefined) return finding("WARNING", "pair", `The pair gets no requests. ${fault}`);
  if (probes === undefined) return finding("OK", "pair", "The pair gets requests; no probe was sent.");
  const result = await probes.now(prefill, decode, signal);
  if (result.kind === "failed") {
    const message = `The pair gets no more requests until a probe succeeds. ${result.text}`;
    const cure =
      "Check the logs of both engines; with P2P NCCL a pair that has hung once stays wedged until both engines have restarted.";
    return finding("ERROR", "probe", message, cure);
  }
  const succeeded = `A probe succeeded in ${Math.round(result.ms)} ms;`;
  if (result.kind === "unjudged") {
    const why = "the engines report no log probabilities, so the answer can't be judged.";
    return finding("UNKNOWN", "probe", `${succeeded} ${why}`);
  }
  const off = `(log probability off by ${result.worstDelta.toPrecision(2)})`;
  return finding("OK", "probe", `${succeeded} decode's first token matched prefill's own ${off}.`);
}

/** An entry that the router ignores. */
export function examineUnproven({ instanceId, role, reason }: UnprovenEntry): Diagnosis {
  const ignored = finding("ERROR", "registry", `It is ignored. ${reason}`, CURES.untrusted);
  return role === "prefill"
    ? { prefillInstanceId: instanceId, finding: ignored }
    : { decodeInstanceId: instanceId, finding: ignored };
}

/** Consul is the only registry that can be away or hold settings. */
export function examineRegistry(status: MessageInitShape<typeof RegistryStatusSchema>): FindingInit[] {
  const { kind, address = "", up = false, error = "", settingsError = "" } = status;
  if (kind !== "consul") return [];
  const away = `${sentence(error)} The router goes on with the instances it knows, and finds no new ones.`;
  const cure = "Check the Consul agent, its address (consul.address) and the policies of the token (docs/consul.md).";
  const found = up
    ? [finding("OK", "registry", `Consul at ${address} answers.`)]
    : [finding("WARNING", "registry", away, cure)];
  if (settingsError !== "") {
    const message = `All settings in Consul are refused: ${sentence(settingsError)} The previous settings stay in force.`;
    const correct = "Correct or delete the key (consul kv put, consul kv delete).";
    found.push(finding("WARNING", "settings", message, correct));
  }
  return found;
}

function sentence(text: string): string {
  return text.replace(/\.?$/, ".");
}
