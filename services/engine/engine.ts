// What prefill and decode know of their engine.
import type { GuardedCommand } from "../common/guardian.ts";
import type { EngineHttp } from "./http.ts";
import type { EngineGauges } from "./metrics-text.ts";
import type { VllmSettings } from "./vllm-output.ts";

/** Those that ship. */
export const OWN_ENGINE_KINDS = ["sim", "embedded"] as const;
export const ENGINE_KINDS = [...OWN_ENGINE_KINDS, "vllm"] as const;
export type EngineKind = (typeof ENGINE_KINDS)[number];

/** The facts that an engine reports about itself. */
export interface EngineFacts {
  readonly kind: EngineKind;
  readonly version: string;
  /** Name under which it serves its model. */
  readonly model: string;
  /** Tokens. 0 where it doesn't say. */
  readonly maxModelLen: number;
  /** Tokens in a KV block. 0 where it doesn't say. */
  readonly blockSize: number;
  /** Number type of weights and KV, `bfloat16`. Empty or absent where it isn't known. */
  readonly dtype?: string;
  /** Absent where it isn't known. */
  readonly tpSize?: number;
  /** What it was given as its model: an id or a path. Empty or absent where it doesn't say. */
  readonly modelRoot?: string;
  /** How prompts are computed, for the doctor; absent for an engine that was not started here, or doesn't report it. */
  readonly vllm?: VllmSettings;
}

/** One engine process that works. A restart makes another one. */
export interface LiveEngine {
  /** Counts up from 1 with every start. KV of an earlier one is gone. */
  readonly incarnation: number;
  readonly http: EngineHttp;
  /** host:port of its KV side channel. Empty where none is known. */
  readonly kvAddress: string;
  readonly facts: EngineFacts;
}

/** Keeps one engine alive. When it dies, every call to it ends at once: with the socket's error, or with `engine_failed`. */
export interface EngineKeeper {
  /** False for an attached engine. */
  readonly ours: boolean;
  /** Undefined while no engine works. */
  readonly live: LiveEngine | undefined;
  /** Why no engine works, or why the engine is about to be restarted, for people. Empty while the engine works. */
  readonly reason: string;
  /** Running legs go on, no new ones may be sent, and then the engine is restarted. */
  readonly retiring: boolean;
  readonly gauges: EngineGauges;
  /** Starts after the first one. */
  readonly restarts: number;
  /** Called when `live`, `reason` or `gauges` changed. */
  onChange(listener: () => void): void;
  /** A call to `engine` failed in a way that a dead one would explain: look at once. */
  suspect(engine: LiveEngine): void;
  /**
   * Replaces an engine whose state can no longer be trusted: when its running legs have ended, or at once if they
   * can't end. Returns false where the engine isn't ours to restart (attached by URL).
   */
  restart(engine: LiveEngine, reason: string, o?: { readonly atOnce?: boolean }): boolean;
  /** Stops the engine: SIGTERM, and SIGKILL after `graceMs`. An attached one is left alone. May be called twice. */
  stop(graceMs: number): Promise<void>;
}

/** Where engines come from: a command, or a URL. */
export interface EngineSource {
  /** Whether it may be killed and started again. */
  readonly ours: boolean;
  /**
   * Resolves when the engine works, and leaves nothing behind where it doesn't.
   *
   * @throws Error whose message says what to do about it.
   */
  start(signal: AbortSignal): Promise<StartedEngine>;
}

export interface StartedEngine {
  readonly http: EngineHttp;
  readonly kvAddress: string;
  readonly facts: EngineFacts;
  /** Resolves with what happened when the process ended. Never for an attached engine. */
  readonly ended: Promise<Error>;
  kill(): void;
  stop(graceMs: number): Promise<void>;
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
}

export interface LaunchPorts {
  /** On ENGINE_HOST. */
  readonly httpPort: number;
  /** Host of the KV side channel, which partners on other machines dial. */
  readonly kvHost: string;
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
