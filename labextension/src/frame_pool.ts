/**
 * Which outputs have a frame: those near to what is seen, and the last that were.
 *
 * A frame takes memory, and a plot's library in it. An output without one keeps its height.
 */

/** Something with a frame: it is told when to begin, and when its frame is given to others. */
export interface Framed {
  readonly node: HTMLElement;
  begin(): void;
  end(): void;
}

/** Frames that stay when they are not near any more. */
const MAX_KEPT = 3;
/** Frames at all: outputs beyond that wait until others are out of sight. */
const MAX_ALIVE = 24;
const MARGIN = '250px';

export class FramePool {
  private readonly members = new Map<Element, Framed>();
  private readonly near = new Set<Framed>();
  /** Those with a frame, the one that was near longest ago first. */
  private readonly alive = new Set<Framed>();
  private observer: IntersectionObserver | null = null;

  watch(member: Framed): void {
    this.observer ??= new IntersectionObserver(
      entries => {
        this.look(entries);
      },
      // The second is for the notebook, which scrolls itself; not all browsers' types have it.
      { rootMargin: MARGIN, scrollMargin: MARGIN } as IntersectionObserverInit
    );
    this.members.set(member.node, member);
    this.observer.observe(member.node);
  }

  leave(member: Framed): void {
    this.observer?.unobserve(member.node);
    this.members.delete(member.node);
    this.near.delete(member);
    this.stop(member);
    this.fill();
  }

  private look(entries: readonly IntersectionObserverEntry[]): void {
    for (const { target, isIntersecting } of entries) {
      const member = this.members.get(target);
      if (member !== undefined) {
        this.near[isIntersecting ? 'add' : 'delete'](member);
        if (this.alive.delete(member)) {
          this.alive.add(member); // the newest
        }
      }
    }
    this.fill();
  }

  private fill(): void {
    for (const member of this.near) {
      if (!this.alive.has(member)) {
        this.shrink(MAX_ALIVE - 1);
        if (this.alive.size < MAX_ALIVE) {
          this.alive.add(member);
          member.begin();
        }
      }
    }
    this.shrink(MAX_KEPT);
  }

  /** Ends frames that are not near until there are so many. */
  private shrink(count: number): void {
    for (const member of this.alive) {
      if (this.alive.size > count && !this.near.has(member)) {
        this.stop(member);
      }
    }
  }

  private stop(member: Framed): void {
    if (this.alive.delete(member)) {
      member.end();
    }
  }
}
