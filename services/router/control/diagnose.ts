// The doctor: what is wrong with the instances, alone and in pairs, or would go wrong. Each finding says what to do.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { FindingLevel, InstanceService, type FindingSchema } from "#gen/tandem/instance/v1/instance_pb.js";
import type { DiagnosisSchema } from "#gen/tandem/router/v1/router_pb.js";
import { asServiceError } from "../../common/errors.ts";
import { pairFault } from "../pool/compat.ts";
import type { Member } from "../pool/member.ts";
import { canaryFault, type CanaryResult } from "../probe/pair-canary.ts";
import type { PoolSnapshot } from "../pool/pool.ts";

type Diagnosis = MessageInitShape<typeof DiagnosisSchema>;
type FindingInit = MessageInitShape<typeof FindingSchema>;

const ASK_TIMEOUT_MS = 5_000;

export interface DiagnoseOptions {
  /** Left out: no canaries are sent. */
  readonly canary?: (prefill: Member, decode: Member) => Promise<CanaryResult>;
  readonly signal: AbortSignal;
}

export async function diagnose({ prefill, decode }: PoolSnapshot, o: DiagnoseOptions): Promise<Diagnosis[]> {
  const ofInstances = await Promise.all(
    [...prefill, ...decode].map(async (member) =>
      (await examine(member, o.signal)).map((finding) => ({ ...nameOf(member, prefill), finding })),
    ),
  );
  // One after another: canaries that wait for each other would be measured as slow.
  const ofPairs: Diagnosis[] = [];
  for (const one of prefill) {
    for (const other of decode) {
      const finding = await examinePair(one, other, o);
      ofPairs.push({ prefillInstanceId: one.info.instanceId, decodeInstanceId: other.info.instanceId, finding });
    }
  }
  return [...examineAll(prefill, decode).map((finding) => ({ finding })), ...ofInstances.flat(), ...ofPairs];
}

function examineAll(prefill: readonly Member[], decode: readonly Member[]): FindingInit[] {
  const found: FindingInit[] = [];
  for (const [role, members] of [
    ["prefill", prefill],
    ["decode", decode],
  ] as const) {
    if (members.length > 0) continue;
    const cure = `Start one: tandem ${role}, or all at once with tandem up.`;
    found.push({ check: "instances", level: FindingLevel.ERROR, message: `No ${role} instance is known.`, cure });
  }
  if (prefill.length === 1 && prefill[0]!.info.connector === "p2p-nccl") {
    found.push({
      check: "spare_prefill",
      level: FindingLevel.WARNING,
      message:
        "One prefill instance alone, and P2P NCCL: a decode engine that dies wedges it, and nothing is served until it has been started again.",
      cure: "Run two prefill instances or more.",
    });
  }
  if (found.length === 0)
    found.push({
      check: "instances",
      level: FindingLevel.OK,
      message: `${prefill.length} prefill and ${decode.length} decode are known.`,
    });
  return found;
}

async function examine(member: Member, signal: AbortSignal): Promise<FindingInit[]> {
  const state: FindingInit = member.eligible
    ? { check: "serving", level: FindingLevel.OK, message: "It serves." }
    : {
        check: "serving",
        level:
          member.condition === "starting" || member.condition === "draining"
            ? FindingLevel.WARNING
            : FindingLevel.ERROR,
        message: `It gets no requests: ${member.reason}`,
        cure: "See its log; what is found below may say why.",
      };
  try {
    const { findings } = await member.control
      .client(InstanceService)
      .diagnose({}, { timeoutMs: ASK_TIMEOUT_MS, signal });
    return [state, ...findings];
  } catch (error) {
    return [
      state,
      {
        check: "asked",
        level: FindingLevel.UNKNOWN,
        message: `It could not be asked: ${asServiceError(error).message}`,
      },
    ];
  }
}

async function examinePair(prefill: Member, decode: Member, { canary }: DiagnoseOptions): Promise<FindingInit> {
  const misfit = pairFault(prefill.info, decode.info);
  if (misfit !== undefined) {
    return {
      check: "pair",
      level: FindingLevel.ERROR,
      message: `They are not paired: ${misfit}.`,
      cure: "Start both alike in that.",
    };
  }
  if (prefill.condition !== "serving" || decode.condition !== "serving") {
    return { check: "pair", level: FindingLevel.UNKNOWN, message: "One of them doesn't serve, so no canary was sent." };
  }
  if (canary === undefined)
    return { check: "pair", level: FindingLevel.UNKNOWN, message: "They fit by their facts; no canary was sent." };
  const result = await canary(prefill, decode);
  const fault = canaryFault(result);
  if (fault !== undefined) {
    const cure =
      result.kind === "wrong"
        ? "Look at decode's CUDA graphs, and whether both run the same weights and number type."
        : "See the logs of both; with P2P NCCL a pair that hangs once stays so until both engines are started again.";
    return { check: "canary", level: FindingLevel.ERROR, message: `They are not used: ${fault}.`, cure };
  }
  const how =
    result.kind === "right"
      ? `and decode's first token was that of prefill alone (log probability off by ${result.worstDelta.toPrecision(2)})`
      : "but the engines tell no log probabilities, so it can't be said whether the answer was right";
  return {
    check: "canary",
    level: result.kind === "right" ? FindingLevel.OK : FindingLevel.UNKNOWN,
    message: `Canaries came through in ${Math.round((result as { ms: number }).ms)} ms, ${how}.`,
  };
}

function nameOf(member: Member, prefill: readonly Member[]): Diagnosis {
  const { instanceId } = member.info;
  return prefill.includes(member) ? { prefillInstanceId: instanceId } : { decodeInstanceId: instanceId };
}
