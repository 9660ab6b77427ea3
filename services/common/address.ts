// host:port, as settings, registries and engines write it.

/** A name or an IPv4 address, or an IPv6 address in brackets. */
export const ADDRESS = /^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+):\d{1,5}$/;

/** "[::1]:3101" -> "::1", 3101. Splits what ADDRESS matches; the result for anything else is meaningless. */
export function splitAddress(address: string): { readonly host: string; readonly port: number } {
  const colon = address.lastIndexOf(":");
  return { host: address.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(address.slice(colon + 1)) };
}

/** The inverse of `splitAddress`. */
export function joinAddress(host: string, port: number): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}
