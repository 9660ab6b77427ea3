// `tandem up --engine vllm` beside one plain vLLM: one prefill and two decode instances, the KV moved by NIXL.
import { create } from "@bufbuild/protobuf";
import { DecodeRequestSchema, DecodeService } from "#gen/tandem/decode/v1/decode_pb.js";
import { Role } from "#gen/tandem/instance/v1/instance_pb.js";
import { PrefillService } from "#gen/tandem/prefill/v1/prefill_pb.js";
import type { Instance } from "#gen/tandem/router/v1/router_pb.js";
import { tandemClient } from "../../../clients/client/index.ts";
import { dialRpc } from "../../../services/rpc/channel.ts";
import { startTandem } from "../../support/tandem.ts";
import { eventually } from "../../support/waits.ts";
import { ask, assertSame, type Answer } from "./answers.ts";
import { askEngine } from "../../support/engine-calls.ts";
import { engineOf } from "./processes.ts";
import { QUESTIONS } from "./questions.ts";
import { CPU_ENV, CPU_FLAGS, MODEL, MODEL_DIR, prepareVllm, startVllm, VLLM_PROGRAM } from "./vllm.ts";

export const STALL_MS = 5_000;
/** A vLLM loads for 20 to 40 s on two cores, two minutes beside much else. */
const BACK_MS = 300_000;

export type Launched = Awaited<ReturnType<typeof startLaunched>>;

/** Starts both. Tandem's instances still load: `whole` waits for them. */
export async function startLaunched() {
  await prepareVllm();
  const [plain, tandem] = await Promise.all([
    startVllm("plain"),
    startTandem(
      [
        "--engine",
        "vllm",
        "--prefill",
        "1",
        "--decode",
        "2",
        "--vllm.command",
        VLLM_PROGRAM,
        "--model",
        MODEL_DIR,
        "--served_name",
        MODEL,
        "--",
        ...CPU_FLAGS,
      ],
      { ...CPU_ENV, TANDEM_STALL_MS: String(STALL_MS), HF_TOKEN: "hf_not_to_be_seen" },
    ),
  ]);

  /** The plain vLLM's answers to QUESTIONS, once they were asked for. */
  const expected: Answer[] = [];
  const instances = async (role: Role): Promise<Instance[]> =>
    (await tandemClient(tandem).router.listInstances({})).instances.filter(({ info }) => info?.role === role);
  const serving = async (role: Role, count: number): Promise<Instance[] | false> => {
    const found = (await instances(role)).filter(({ eligible }) => eligible);
    return found.length === count && found;
  };
  const servesAgain = (): Promise<unknown> =>
    eventually(
      "a question is answered again",
      async () => {
        const answer = await ask(tandem.url, QUESTIONS[1]!);
        assertSame(answer, expected[1]!);
        return true;
      },
      BACK_MS,
    );
  const all = async (): Promise<Instance[]> => [...(await instances(Role.PREFILL)), ...(await instances(Role.DECODE))];
  const whole = (): Promise<unknown> =>
    eventually(
      "one prefill and two decode instances serve",
      async () => (await serving(Role.PREFILL, 1)) && (await serving(Role.DECODE, 2)),
      BACK_MS,
    );
  const wholeAgain = async (): Promise<void> => {
    await whole();
    await servesAgain();
  };
  const retries = (): Promise<number> => metricOf(tandem.url, "tandem_retries_total");
  /** Engines free what nobody fetches when a lease ends, and look for that when they have something to do. */
  const kvFree = async (): Promise<void> => {
    await eventually(
      "no leg, no orphan and no KV is left",
      async () => {
        await ask(tandem.url, QUESTIONS[1]!);
        const found = await all();
        if (!found.every(({ legs, load }) => legs === 0 && load?.kvOrphans === 0 && load.running === 0)) return false;
        const used = await Promise.all(
          found.map(({ info }) => metricOf(engineOf(info!.pid).url, "vllm:kv_cache_usage_perc")),
        );
        return used.every((ratio) => ratio < 0.01);
      },
      90_000,
    );
  };

  /** The instances' own services, past the router. */
  async function openLegs() {
    const [prefill] = (await instances(Role.PREFILL)).map(({ info }) => info!);
    const [decode] = (await instances(Role.DECODE)).map(({ info }) => info!);
    const prefillChannel = dialRpc(prefill!.grpcAddress, { token: tandem.token });
    const decodeChannel = dialRpc(decode!.grpcAddress, { token: tandem.token });
    const path = "/v1/completions";
    return {
      legOf: (digit: string): string => digit.repeat(32),
      bodyOf: (prompt: string): string => JSON.stringify({ model: MODEL, prompt, max_tokens: 4, temperature: 0 }),
      async prefillLeg(legId: string, body: string): Promise<string> {
        return (await prefillChannel.client(PrefillService).prefill({ legId, path, body })).ticket;
      },
      async decodeLeg(legId: string, body: string, ticket: string): Promise<void> {
        async function* steps() {
          yield create(DecodeRequestSchema, {
            step: { case: "reserve", value: { legId, path, body, identity: { id: "x", created: 1, choiceIndex: 0 } } },
          });
          yield create(DecodeRequestSchema, { step: { case: "start", value: { ticket } } });
        }
        for await (const _ of decodeChannel.client(DecodeService).decode(steps(), { timeoutMs: 60_000 }));
      },
      async [Symbol.asyncDispose]() {
        await Promise.all([prefillChannel, decodeChannel].map((channel) => channel[Symbol.asyncDispose]()));
      },
    };
  }

  return {
    plain,
    tandem,
    expected,
    instances,
    all,
    whole,
    servesAgain,
    wholeAgain,
    retries,
    kvFree,
    openLegs,
    async [Symbol.asyncDispose]() {
      await tandem[Symbol.asyncDispose]();
      await plain[Symbol.asyncDispose]();
    },
  };
}

/** Summed over its labels. */
export const metricOf = async (url: string, name: string): Promise<number> => {
  const { text } = await askEngine(url, "/metrics");
  const values = text.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  return values.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0);
};
