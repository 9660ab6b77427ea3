// host:port, as settings, registries and engines write it.
import type { Socket } from "node:net";

/** A name or an IPv4 address, or an IPv6 address in brackets, with its zone if it has one. */
export const ADDRESS = /^(\[[0-9a-fA-F:.]+(%[\w.-]+)?\]|[A-Za-z0-9._-]+):\d{1,5}$/;

/** "[::1]:3101" -> "::1", 3101. Splits what ADDRESS matches; the result for anything else is meaningless. */
export function splitAddress(address: string): { readonly host: string; readonly port: number } {
  const colon = address.lastIndexOf(":");
  return { host: address.slice(0, colon).replace(/^\[|\]$/g, ""), port: Number(address.slice(colon + 1)) };
}

/** The inverse of `splitAddress`. */
export function joinAddress(host: string, port: number): string {
  return `${host.includes(":") ? `[${host}]` : host}:${port}`;
}

/**
 * Whether only this machine can reach the host. A server on any other host must authenticate its callers.
 *
 * @param host Without port and brackets. A name other than `localhost` may lead anywhere, and counts as reachable.
 */
export function isLoopbackHost(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}

/** IP address and port of one end of a connection, written alike at both ends. */
export function endAddress(
  socket: Pick<Socket, "localAddress" | "localPort" | "remoteAddress" | "remotePort">,
  end: "local" | "remote",
): string {
  const { localAddress, localPort, remoteAddress, remotePort } = socket;
  const [host = "", port = 0] = end === "local" ? [localAddress, localPort] : [remoteAddress, remotePort];
  // A server on [::] sees IPv4 callers under mapped addresses, and a zone means something on its own host only.
  return joinAddress(host.replace(/^::ffff:(?=\d+\.)/, "").replace(/%.*/, ""), port);
}
