// How an instance makes itself known, and how a router learns who is there. Consul does both; the embedded registry has
// a half on each side; a static list has only the router's.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";

/** The instance's side. */
export interface Registrar {
  readonly name: "embedded" | "static" | "consul";
  /**
   * Registers in the background and goes on trying for as long as it takes: an instance serves without a registry too.
   * `stop` ends it as disposing does.
   */
  register(self: () => Info, stop: AbortSignal): Promise<Registration>;
}

export interface Registration {
  /** What `self` returns has changed. */
  update(): void;
  /** Takes the entry out, and waits for that no longer than a second. May be called twice. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** The router's side. */
export interface Directory {
  /** `onChange` gets every entry, at once and after each change. Entries that only fell silent stay. */
  watch(onChange: (entries: readonly Info[]) => void): Watch;
}

export interface Watch {
  [Symbol.asyncDispose](): Promise<void>;
}

/** Both sides. */
export interface Registry extends Registrar, Directory {}
