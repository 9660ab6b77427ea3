// What prefill and decode know of their engine.
import type { GuardedCommand } from "../common/guardian.ts";
import type { EngineHttp } from "./http.ts";

/** Those that ship. */
export const OWN_ENGINE_KINDS = ["sim", "embedded"] as const;
export const ENGINE_KINDS = [...OWN_ENGINE_KINDS, "vllm"] as const;
export type EngineKind = (typeof ENGINE_KINDS)[number];

/** The facts that an engine reports about itself. The optional ones are absent if it doesn't report them. */
export interface EngineFacts {
  readonly kind: EngineKind;
  readonly version: string;
  /** Name under which it serves its model. */
  readonly model: string;
  /** Tokens. 0 where it doesn't say. */
  readonly maxModelLen: number;
  /** Tokens in a KV block. 0 where it doesn't say. */
  readonly blockSize: number;
  /** Tokens that its KV cache holds. */
  readonly kvCacheTokens?: number;
  /** Size of that cache, on all ranks. */
  readonly kvCacheBytes?: number;
  /** Number type of weights and KV, `bfloat16`. */
  readonly dtype?: string;
  readonly tpSize?: number;
  /** What it was given as its model: an id or a path. */
  readonly modelRoot?: string;
  // What vLLM made of its flags. Only known of a vLLM that was started here.
  readonly enforceEager?: boolean;
  readonly chunkedPrefill?: boolean;
  /** `FULL_AND_PIECEWISE`, `PIECEWISE`, `NONE`. */
  readonly cudagraphMode?: string;
  readonly kvDtype?: string;
}

/** One engine process that works. A restart makes another one, and KV of an earlier one is gone. */
export interface LiveEngine {
  readonly http: EngineHttp;
  /** host:port of its KV side channel. Empty where none is known. */
  readonly kvAddress: string;
  readonly facts: EngineFacts;
}

export interface StartedEngine extends LiveEngine {
  /** host:port at which its KV side channel listens on this machine, which partners may reach at another address. */
  readonly ownKvAddress?: string;
  /** Resolves with what happened when the process ended. Never for an attached engine. */
  readonly ended: Promise<Error>;
  /** SIGTERM, and SIGKILL after `graceMs`. Resolves when the process is gone. An attached engine is left alone. */
  stop(graceMs: number): Promise<void>;
}

/** Where engines come from: a command, or a URL. */
export interface EngineSource {
  /** Whether it may be killed and started again. False for an attached engine. */
  readonly ours: boolean;
  /** Of an attached engine: which process it is, for people. */
  readonly process?: () => string;
  /**
   * Of an attached engine: has it restarted, if the operator said how. Resolves when that was done; the engine may still
   * load.
   *
   * @throws Error that says how it failed
   */
  readonly restart?: (why: string, signal: AbortSignal) => Promise<void>;
  /**
   * Resolves when the engine works, and leaves nothing behind where it doesn't.
   *
   * @throws Error whose message says what to do about it.
   */
  start(signal: AbortSignal): Promise<StartedEngine>;
}

export interface LaunchOptions {
  readonly role: "prefill" | "decode";
  readonly connector: string;
  /** vLLM: its model. embedded: a GGUF file; empty: the one that ships. sim: a name; empty: the sim's own. */
  readonly model: string;
  /** Number of sequences that the engine must be able to hold. */
  readonly slots: number;
  /** Given to the engine as they are, after Tandem's own. */
  readonly flags: readonly string[];
  /** Join token of the deployment, if it has one. Engines never see it; Tandem's own get a key made from it. */
  readonly token?: string;
}

/** Where an engine that Tandem starts listens. */
export interface ListenAddresses {
  /** Of its HTTP API. An engine has no access control, so only its wrapper may reach the socket. */
  readonly socketPath: string;
  /** Host of the KV side channel, which partners on other machines dial. */
  readonly kvHost: string;
  /** P2P NCCL: of rank 0; rank n uses the n-th after it. */
  readonly kvPort: number;
}

/** How an engine is started, and how its output is read. */
export interface Launch extends GuardedCommand {
  /** Devices on which only one engine may start at a time. */
  readonly devices?: readonly string[];
  /** The phase until the output reports another one. */
  readonly firstPhase?: string;
  /** The phase that begins with this line of its output, if one does. */
  readonly phaseOf?: (line: string) => string | undefined;
  /** Why the engine must stop after this line of its output: it runs, but its answers are wrong from here on. */
  readonly brokenBy?: (line: string) => string | undefined;
  /** Of its last lines, those that say why it failed. */
  readonly reasonOf?: (lines: readonly string[]) => readonly string[];
  /** host:port of the KV side channel as the engine reports it, once it works; undefined if it doesn't. */
  readonly toldKvAddress?: () => Promise<string | undefined>;
  /** Facts that the engine's output reported beyond its API. Read once the engine works. */
  readonly learned?: () => Partial<EngineFacts>;
}
