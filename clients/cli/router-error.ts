// What to say when the router that a command asked doesn't answer as it should.
import { Code, type ConnectError } from "@connectrpc/connect";

export function explainRouterError(error: ConnectError, url: string, runCount: number): string {
  if (error.code === Code.Unauthenticated) {
    return `The router at ${url} asks for its join token: give --token, or set TANDEM_TOKEN to what it was started with.`;
  }
  if (error.code === Code.Unimplemented || error.code === Code.NotFound) {
    return `${url} answers, but not as a Tandem router does. Give the REST address of one with --router.`;
  }
  if (
    error.code === Code.Unavailable ||
    /ECONNREFUSED|ENOTFOUND|EHOSTUNREACH/.test(String(error.cause ?? error.message))
  ) {
    const hint =
      runCount === 0
        ? "No `tandem up` of this user runs here. Start one with `tandem up`, or name a router with --router URL."
        : "Name the router with --router URL.";
    return `Nothing listens at ${url}. ${hint}`;
  }
  // Node's HTTP/1.1 parser on a server that speaks HTTP/2 only.
  if (/Parse Error: Expected HTTP/.test(error.message))
    return `${url} speaks gRPC. Give the router's REST address with --router.`;
  return `The router at ${url} answered: ${error.message}`;
}
