// How an instance registers, and how a router learns which instances exist. Consul does both; the embedded registry has
// a half on each side; a static list has only the router's.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";

/** Whether a process takes work, and why not. */
export interface SelfReport {
  readonly serving: boolean;
  /** For people. Reported when it changes. */
  readonly text: string;
  /** For people: `61 of 64 slots free`. It changes too often for that, and is reported now and then. */
  readonly load?: string;
}

/**
 * One entry in a registry. It is made in the background, for as long as it takes: an instance serves without a registry
 * too.
 */
export interface Registration {
  /** What the entry shows has changed. */
  update(): void;
  /** Takes the entry out, and waits for that no longer than a second. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Entries in several registries as one. None waits for another. */
export function together(all: readonly Registration[]): Registration {
  return {
    update: () => all.forEach((registration) => registration.update()),
    async [Symbol.asyncDispose]() {
      await Promise.all(all.map((registration) => registration[Symbol.asyncDispose]()));
    },
  };
}

/**
 * What a registry has against an instance that it lists. `maintenance`: an operator took it out. `critical`: its health
 * check fails. `missing`: it was listed until a moment ago. `lapsed`: it has not renewed its entry, which says nothing
 * about an instance that is heard.
 */
export interface Objection {
  readonly kind: "maintenance" | "critical" | "missing" | "lapsed";
  /** For people. */
  readonly reason: string;
}

/** @param objections By instance id. Most instances have none. */
export type EntriesListener = (entries: readonly Info[], objections?: ReadonlyMap<string, Objection>) => void;

/** The router's side. */
export interface Directory {
  /** `onChange` gets every entry, at once and after each change. Entries that only fell silent stay. */
  watch(onChange: EntriesListener): AsyncDisposable;
}

/** An entry that the router ignores, because it does not prove that a member of the deployment wrote it. */
export interface UnprovenEntry {
  readonly instanceId: string;
  readonly role: "prefill" | "decode";
  /** For people, without addresses. */
  readonly reason: string;
}

/** How a registry that can be away is doing. */
export interface RegistryHealth {
  /** `127.0.0.1:8500` */
  readonly address: string;
  /** Whether its last answer was a good one. False until the first. */
  readonly up: boolean;
  /** Since when not, Unix milliseconds; 0 while it is up. */
  readonly downSinceUnixMs: number;
  /** Why not. Empty while it is up. */
  readonly error: string;
}
