// Which hosts only this machine can reach. A server on any other host must authenticate its callers.

/** @param host Without port and brackets. A name other than `localhost` may lead anywhere, and counts as reachable. */
export function isLoopbackHost(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(\.\d{1,3}){3}$/.test(host);
}
