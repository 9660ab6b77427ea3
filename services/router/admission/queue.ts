// The order of waiting requests: by priority, within a priority by tenants in turn, within a tenant first come, first
// served, or the newest first while the queue stands (standing-queue.ts). Every operation is O(log n) in the requests that wait.
// Turns are start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): a request's start tag is where its tenant's
// earlier ones end, or the present for a tenant that has none; the lowest tag is next. A tenant that brings a thousand
// requests delays another's first by one.
import { Heap } from "../../common/heap.ts";

export interface Waiter {
  readonly model: string;
  /** The tenant whose share of the queue it takes. Empty: the tenant of all requests without one. */
  readonly tenant: string;
  /** Lower is sooner, as in vLLM. */
  readonly priority: number;
  /** Legs that it will run, one for each choice of each prompt. */
  readonly legs: number;
}

interface Entry {
  readonly waiter: Waiter;
  tag: number;
  /** Counts the requests in the order of arrival. */
  readonly index: number;
}

/** The requests of one tenant, of all models. The last one of them is displaced when the queue is full. */
interface Tenant {
  readonly waiting: Heap<Entry>;
  readonly name: string;
}

/** The requests of one model. */
interface Line {
  readonly next: Heap<Entry>;
  /** In the order of arrival. */
  readonly arrived: Set<Entry>;
  /** The requests of one tenant and priority, the newest first. */
  readonly newest: Map<string, Heap<Entry>>;
  /** Legs of all. */
  legs: number;
  /** Start tag of the last request that was admitted. */
  present: number;
  /** End tag of each tenant's last request. */
  readonly ends: Map<string, { tag: number; count: number }>;
  readonly legsByPriority: Map<number, number>;
}

export class FairQueue<W extends Waiter> {
  readonly #lines = new Map<string, Line>();
  readonly #tenants = new Map<string, Tenant>();
  readonly #heaviest = new Heap<Tenant>(
    (a, b) => a.waiting.size > b.waiting.size || (a.waiting.size === b.waiting.size && a.name > b.name),
  );
  readonly #entries = new Map<W, Entry>();
  #index = 0;

  get size(): number {
    return this.#entries.size;
  }

  models(): string[] {
    return [...this.#lines.keys()];
  }

  first(model: string): W | undefined {
    return this.#lines.get(model)?.next.first?.waiter as W | undefined;
  }

  /** The request of a model that has waited longest. */
  oldest(model: string): W | undefined {
    return this.#lines.get(model)?.arrived.values().next().value?.waiter as W | undefined;
  }

  /** Legs of the model's requests. */
  legsOf(model: string): number {
    return this.#lines.get(model)?.legs ?? 0;
  }

  /** Gives the next turn to the newest request of the tenant and priority whose turn it is. */
  preferNewest(model: string): void {
    const line = this.#lines.get(model);
    const next = line?.next.first;
    if (line === undefined || next === undefined) return;
    const newest = line.newest.get(groupOf(next.waiter))!.first!;
    if (newest === next) return;
    const { waiting } = this.#tenants.get(next.waiter.tenant)!;
    for (const entry of [next, newest]) for (const heap of [line.next, waiting]) heap.remove(entry);
    [next.tag, newest.tag] = [newest.tag, next.tag];
    for (const entry of [next, newest]) for (const heap of [line.next, waiting]) heap.push(entry);
  }

  push(waiter: W): void {
    const line = this.#line(waiter.model);
    const known = line.ends.get(waiter.tenant);
    const tag = Math.max(line.present, known?.tag ?? 0);
    const entry: Entry = { waiter, tag, index: this.#index++ };
    line.ends.set(waiter.tenant, { tag: tag + waiter.legs, count: (known?.count ?? 0) + 1 });
    line.legsByPriority.set(waiter.priority, (line.legsByPriority.get(waiter.priority) ?? 0) + waiter.legs);
    line.next.push(entry);
    line.arrived.add(entry);
    line.legs += waiter.legs;
    const group = groupOf(waiter);
    const newest = line.newest.get(group) ?? new Heap<Entry>((a, b) => a.index > b.index);
    line.newest.set(group, newest);
    newest.push(entry);
    this.#entries.set(waiter, entry);
    const tenant = this.#tenants.get(waiter.tenant) ?? {
      name: waiter.tenant,
      waiting: new Heap<Entry>((a, b) => goesBefore(b, a)),
    };
    this.#tenants.set(waiter.tenant, tenant);
    this.#heaviest.remove(tenant);
    tenant.waiting.push(entry);
    this.#heaviest.push(tenant);
  }

  /** Removes a request that was admitted or left. @param served Whether its turn counts. */
  remove(waiter: W, served: boolean): void {
    const entry = this.#entries.get(waiter);
    if (entry === undefined) return;
    this.#entries.delete(waiter);
    const line = this.#line(waiter.model);
    line.next.remove(entry);
    line.arrived.delete(entry);
    line.legs -= waiter.legs;
    const newest = line.newest.get(groupOf(waiter))!;
    newest.remove(entry);
    if (newest.size === 0) line.newest.delete(groupOf(waiter));
    if (served) line.present = Math.max(line.present, entry.tag);
    const left = (line.legsByPriority.get(waiter.priority) ?? 0) - waiter.legs;
    if (left > 0) line.legsByPriority.set(waiter.priority, left);
    else line.legsByPriority.delete(waiter.priority);
    const end = line.ends.get(waiter.tenant)!;
    end.count -= 1;
    // A tenant without waiting requests owes at most one turn. It is forgotten, so that memory doesn't grow with
    // tenants.
    if (end.count === 0) line.ends.delete(waiter.tenant);
    if (line.next.size === 0) this.#lines.delete(waiter.model);
    const tenant = this.#tenants.get(waiter.tenant)!;
    this.#heaviest.remove(tenant);
    tenant.waiting.remove(entry);
    if (tenant.waiting.size === 0) this.#tenants.delete(waiter.tenant);
    else this.#heaviest.push(tenant);
  }

  /**
   * Finds the request that a newcomer displaces when the queue is full: the last one of the tenant with the most
   * waiting requests, or one of the newcomer's tenant with a lower priority. Undefined: the newcomer itself is refused.
   */
  displacedBy({ tenant, priority }: Waiter): W | undefined {
    const own = this.#tenants.get(tenant);
    const heaviest = this.#heaviest.first;
    if (heaviest === undefined) return undefined;
    if (heaviest !== own && heaviest.waiting.size > (own?.waiting.size ?? 0) + 1)
      return heaviest.waiting.first!.waiter as W;
    const worst = own?.waiting.first?.waiter;
    return worst !== undefined && worst.priority > priority ? (worst as W) : undefined;
  }

  /** Lower bound of the legs that will be admitted before a newcomer. */
  legsBefore({ model, tenant, priority }: Waiter): number {
    const line = this.#lines.get(model);
    if (line === undefined) return 0;
    let sooner = 0;
    let same = 0;
    for (const [other, legs] of line.legsByPriority) {
      if (other < priority) sooner += legs;
      else if (other === priority) same += legs;
    }
    // At equal priority, only its own tenant's earlier turns and the other tenants' turns between them count.
    const debt = Math.max(0, (line.ends.get(tenant)?.tag ?? 0) - line.present);
    return sooner + Math.min(same, debt * line.ends.size);
  }

  #line(model: string): Line {
    let line = this.#lines.get(model);
    if (line === undefined) {
      line = {
        next: new Heap<Entry>(goesBefore),
        arrived: new Set(),
        newest: new Map(),
        legs: 0,
        present: 0,
        ends: new Map(),
        legsByPriority: new Map(),
      };
      this.#lines.set(model, line);
    }
    return line;
  }
}

function goesBefore(a: Entry, b: Entry): boolean {
  return (a.waiter.priority - b.waiter.priority || a.tag - b.tag || a.index - b.index) < 0;
}

function groupOf({ tenant, priority }: Waiter): string {
  return `${priority} ${tenant}`;
}
