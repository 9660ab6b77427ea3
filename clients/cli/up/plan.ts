// The processes of a run and their command lines. No I/O.
import { TANDEM, type ChildSpec } from "../../common/child.ts";
import { engineKind, gpusOf, isAttached, type UpConfig } from "./config.ts";
import type { ListenPorts } from "./listen-ports.ts";

export interface PlanInput {
  readonly config: UpConfig;
  readonly ports: ListenPorts;
  readonly token: string;
  /** Name of the deployment. */
  readonly name: string;
  readonly stateDir: string;
  readonly env: Readonly<Record<string, string | undefined>>;
}

export function planChildren(input: PlanInput): ChildSpec[] {
  const { config, ports } = input;
  const env = childEnv(input);
  const spec = (name: string, role: ChildSpec["role"], flags: readonly string[]): ChildSpec => ({
    name,
    role,
    argv: [...TANDEM, role, ...flags, `--drain.grace_ms=${config.process.drainGraceMs}`],
    env,
  });
  const consul = config.consul ? ["--registry.kind=consul"] : [];
  const registry = `--registry.address=${dialable(ports.grpc)}`;
  const instances = (role: "prefill" | "decode"): ChildSpec[] => {
    const attached = config.attach[role];
    const count = isAttached(config) ? attached.length : config[role];
    return Array.from({ length: count }, (_, index) =>
      spec(`${role}-${index + 1}`, role, [
        // Any free port: the instance registers the port it got, and two runs on one machine don't collide.
        "--grpc.listen=127.0.0.1:0",
        ...(config.consul ? consul : [registry]),
        ...(isAttached(config)
          ? [`--engine.attach=${attached[index]}`, ...flag("engine.kv_address", config.attach[`${role}Kv`][index])]
          : engineFlags(input, role, index)),
        ...flagsOf(config, role).map((flag) => `--engine.flag=${flag}`),
        ...flag("connector", config.engines.connector),
        ...flag("model", config.model),
        `--kv.listen=${config.engines[`${role}KvPort`] + index}`,
      ]),
    );
  };
  const { discover } = config.attach;
  return [
    spec("router", "router", [
      `--rest.listen=${ports.rest}`,
      `--grpc.listen=${ports.grpc}`,
      `--rest.tls=${config.tls.rest}`,
      ...consul,
    ]),
    ...(discover === undefined
      ? [...instances("prefill"), ...instances("decode")]
      : [spec("discover", "discover", [`--listen=${discover}`, registry, ...flag("model", config.model)])]),
  ];
}

/** Empty if the value is not given. */
function flag(name: string, value: string | undefined): string[] {
  return value === undefined ? [] : [`--${name}=${value}`];
}

/** A flag may name its role: "decode:--fault=stall". */
function flagsOf(config: UpConfig, role: "prefill" | "decode"): string[] {
  const other = role === "prefill" ? "decode:" : "prefill:";
  const own = config.engines.flags.filter((one) => !one.startsWith(other));
  return own.map((one) => (one.startsWith(`${role}:`) ? one.slice(role.length + 1) : one));
}

/** Of an engine that is started. */
function engineFlags({ config, env }: PlanInput, role: "prefill" | "decode", index: number): string[] {
  const kind = engineKind(config);
  const flags = [`--engine.kind=${kind}`, ...flag("served_name", config.engines.servedName)];
  if (kind !== "vllm") return flags;
  const nth = role === "prefill" ? index : config.prefill + index;
  // One GPU per instance is the default; if the user made a list visible, its GPUs are assigned in order.
  const visible = env["CUDA_VISIBLE_DEVICES"]?.split(",").filter((one) => one !== "");
  const given = gpusOf(config)?.[nth];
  const gpus = given ?? (visible === undefined ? String(nth) : visible[nth % Math.max(1, visible.length)]);
  return [...flags, ...flag("vllm.command", config.engines.vllmCommand), ...flag("gpus", gpus)];
}

/** The address at which this machine reaches a server that listens on `address`. */
export function dialable(listen: string): string {
  return listen.replace(/^0\.0\.0\.0:/, "127.0.0.1:").replace(/^\[::\]:/, "[::1]:");
}

function childEnv({ config, env, token, name, stateDir }: PlanInput): ChildSpec["env"] {
  const { engines, access, tls } = config;
  return {
    ...env,
    // The file holds settings of `up`, which the children don't know.
    TANDEM_CONFIG: undefined,
    // Assigned to the roles above.
    TANDEM_ENGINE_FLAG: undefined,
    TANDEM_TOKEN: token,
    TANDEM_DEPLOYMENT_NAME: name,
    TANDEM_STATE_DIR: stateDir,
    TANDEM_LOG_FORMAT: "json",
    TANDEM_TLS_CERT: tls.cert,
    TANDEM_TLS_KEY: tls.key,
    TANDEM_TLS_CA: tls.ca,
    TANDEM_TLS_PEER_IDS: tls.peerIds.join(","),
    ...(engines.hfToken === "" ? {} : { HF_TOKEN: engines.hfToken }),
    ...(access.apiKey === "" ? {} : { TANDEM_API_KEY: access.apiKey }),
  };
}
