// The processes of a run and their command lines. No I/O.
import { TANDEM, type ChildSpec } from "../../common/child.ts";
import { engineKind, gpusOf, isAttached, type UpConfig } from "./config.ts";

export interface PlanInput {
  readonly config: UpConfig;
  /** host:port; the port is never 0 here. */
  readonly restListen: string;
  readonly grpcListen: string;
  readonly token: string;
  /** Name of the deployment. */
  readonly name: string;
  readonly stateDir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export function planChildren(input: PlanInput): ChildSpec[] {
  const { config } = input;
  const graceMs = String(config.process.drainGraceMs);
  const env = childEnv(input);
  const spec = (name: string, role: ChildSpec["role"], flags: readonly string[]): ChildSpec => ({
    name,
    role,
    argv: [...TANDEM, role, ...flags, "--drain.grace_ms", graceMs],
    env,
  });
  const instances = (role: "prefill" | "decode"): ChildSpec[] => {
    const urls = config.attach[role];
    const count = isAttached(config) ? urls.length : config[role];
    return Array.from({ length: count }, (_, index) =>
      spec(`${role}-${index + 1}`, role, [
        // Any free port: the instance registers the port it got, and two runs on one machine don't collide.
        "--grpc.listen",
        "127.0.0.1:0",
        ...(config.consul ? ["--registry.kind", "consul"] : ["--registry.address", dialable(input.grpcListen)]),
        ...(isAttached(config) ? ["--engine.attach", urls[index]!] : ["--engine.kind", engineKind(config)]),
        ...flagsOf(config, role).map((flag) => `--engine.flag=${flag}`),
        ...(config.engines.servedName === undefined || isAttached(config)
          ? []
          : [`--served_name=${config.engines.servedName}`]),
        ...(config.engineKind === "vllm" && !isAttached(config) ? vllmFlags(config, role, index, input.env) : []),
        ...(config.engines.connector === undefined ? [] : ["--connector", config.engines.connector]),
        ...(config.model === undefined ? [] : ["--model", config.model]),
        "--kv.listen",
        String(config.engines[`${role}KvPort`] + index),
      ]),
    );
  };
  const discover = (listen: string): ChildSpec =>
    spec("discover", "discover", [
      "--listen",
      listen,
      "--registry.address",
      dialable(input.grpcListen),
      ...(config.model === undefined ? [] : ["--model", config.model]),
    ]);
  return [
    spec("router", "router", [
      "--rest.listen",
      input.restListen,
      "--grpc.listen",
      input.grpcListen,
      ...(config.consul ? ["--registry.kind", "consul"] : []),
    ]),
    ...(config.attach.discover === undefined
      ? [...instances("prefill"), ...instances("decode")]
      : [discover(config.attach.discover)]),
  ];
}

/** A flag may name its role: "decode:--fault=stall". */
function flagsOf(config: UpConfig, role: "prefill" | "decode"): string[] {
  const other = role === "prefill" ? "decode:" : "prefill:";
  const own = config.engines.flags.filter((flag) => !flag.startsWith(other));
  return own.map((flag) => (flag.startsWith(`${role}:`) ? flag.slice(role.length + 1) : flag));
}

function vllmFlags(config: UpConfig, role: "prefill" | "decode", index: number, env: PlanInput["env"]): string[] {
  const nth = role === "prefill" ? index : config.prefill + index;
  // One GPU per instance is the default; if the user made a list visible, its GPUs are assigned in order.
  const visible = env["CUDA_VISIBLE_DEVICES"]?.split(",").filter((one) => one !== "");
  const gpus =
    gpusOf(config)?.[nth] ?? (visible === undefined ? String(nth) : visible[nth % Math.max(1, visible.length)]);
  return [
    ...(config.engines.vllmCommand === undefined ? [] : [`--vllm.command=${config.engines.vllmCommand}`]),
    ...(gpus === undefined ? [] : [`--gpus=${gpus}`]),
  ];
}

/** The address at which this machine reaches a server that listens on `address`. */
export function dialable(listen: string): string {
  return listen.replace(/^0\.0\.0\.0:/, "127.0.0.1:").replace(/^\[::\]:/, "[::1]:");
}

function childEnv({ config, env, token, name, stateDir }: PlanInput): Record<string, string | undefined> {
  const own: Record<string, string | undefined> = { ...env };
  // The file holds settings of `up`, which the children don't know.
  delete own["TANDEM_CONFIG"];
  // Assigned to the roles above.
  delete own["TANDEM_ENGINE_FLAG"];
  own["TANDEM_TOKEN"] = token;
  own["TANDEM_DEPLOYMENT_NAME"] = name;
  own["TANDEM_STATE_DIR"] = stateDir;
  own["TANDEM_LOG_FORMAT"] = "json";
  if (config.engines.hfToken !== "") own["HF_TOKEN"] = config.engines.hfToken;
  if (config.access.apiKey !== "") own["TANDEM_API_KEY"] = config.access.apiKey;
  return own;
}
