// The id that a client gives its request. It is echoed and kept for the receipt, and goes no further: vLLM would parse
// KV addresses out of it.

const HARMLESS = /^[A-Za-z0-9._-]{1,128}$/;

/** Returns the header's value, or undefined if it is not a harmless token. */
export function clientIdOf(header: string | string[] | undefined): string | undefined {
  return typeof header === "string" && HARMLESS.test(header) && !header.includes("___") ? header : undefined;
}
