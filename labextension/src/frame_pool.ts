/**
 * Which outputs have a frame: those near to what is seen, and the last that were.
 *
 * A frame takes memory, and a plot's library in it. An output without one keeps its height. Of what
 * goes by while a person scrolls fast, none begins: only that at which they stop, and then the next.
 */

/** Something with a frame: it is told when to begin, and when its frame is given to others. */
export interface Framed {
  readonly node: HTMLElement;
  begin(): void;
  end(): void;
}

/** Frames that stay when they are not near any more. While one with a library is there, the browser
 *  keeps what it has compiled: without, the next plot takes a second. */
const MAX_KEPT = 3;
/** Frames at all: outputs beyond that wait until others are out of sight. */
const MAX_ALIVE = 24;
/** A frame that is as near as that begins before it is seen. */
const MARGIN = '500px';
const LOOK_MILLISECONDS = 100;
/** Pixels between two looks by which an output may move and begin. */
const MAX_MOVED = 200;

export class FramePool {
  private readonly members = new Map<Element, Framed>();
  /** With where they were when they were looked at last. */
  private readonly near = new Map<Framed, number>();
  /** Those with a frame, the one that was near longest ago first. */
  private readonly alive = new Set<Framed>();
  private observer: IntersectionObserver | null = null;
  private looking: ReturnType<typeof setTimeout> | undefined;

  watch(member: Framed): void {
    this.observer ??= new IntersectionObserver(
      entries => {
        this.observe(entries);
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
  }

  private observe(entries: readonly IntersectionObserverEntry[]): void {
    for (const { target, isIntersecting, boundingClientRect } of entries) {
      const member = this.members.get(target);
      if (member !== undefined) {
        if (isIntersecting) {
          this.near.set(member, boundingClientRect.top);
        } else {
          this.near.delete(member);
        }
        if (this.alive.delete(member)) {
          this.alive.add(member); // the newest
        }
      }
    }
    this.shrink(MAX_KEPT);
    this.lookLater();
  }

  private lookLater(): void {
    this.looking ??= setTimeout(() => {
      this.look();
    }, LOOK_MILLISECONDS);
  }

  /** Begins all that are seen, and one of the others, unless they move fast. */
  private look(): void {
    const ready: (readonly [Framed, boolean])[] = [];
    let left = 0;
    for (const [member, before] of this.near) {
      if (!this.alive.has(member)) {
        const { top, bottom } = member.node.getBoundingClientRect();
        this.near.set(member, top);
        left += 1;
        if (Math.abs(top - before) <= MAX_MOVED) {
          ready.push([member, bottom > 0 && top < innerHeight]);
        }
      }
    }
    const seen = ready.filter(([, isSeen]) => isSeen);
    for (const [member] of seen.length > 0 ? seen : ready.slice(0, 1)) {
      this.shrink(MAX_ALIVE - 1);
      if (this.alive.size < MAX_ALIVE) {
        this.alive.add(member);
        member.begin();
      }
    }
    this.shrink(MAX_KEPT);
    this.looking = undefined;
    if (left > 0) {
      this.lookLater();
    }
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
