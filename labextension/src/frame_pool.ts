/**
 * Which outputs have a frame: those near to what is seen, and the last that were.
 *
 * A frame takes memory, and a plot's library in it. An output without one keeps its height. Of what
 * goes by while a person scrolls fast, none begins: only that at which they stop, and then the next.
 */

import type { FramedView } from './framed_view.js';

/** Frames that stay when they are not near any more. While one with a library is there, the browser
 *  keeps what it has compiled: without, the next plot takes a second. */
const MAX_KEPT = 3;
/** Frames at all: outputs beyond that wait until others are out of sight. */
const MAX_ALIVE = 24;
/** Pixels around what is seen: a frame begins before. */
const MARGIN = 500;
const LOOK_MILLISECONDS = 100;
/** Pixels between two looks by which an output may move and begin. */
const MAX_MOVED = 200;

export class FramePool {
  /** Each with its cell, or itself. */
  private readonly members = new Map<FramedView, HTMLElement>();
  /** With where they were when they were looked at last. */
  private readonly near = new Map<FramedView, number>();
  /** Those with a frame, the one that was near longest ago first. */
  private readonly alive = new Set<FramedView>();
  private observer: IntersectionObserver | null = null;
  private looking: ReturnType<typeof setTimeout> | undefined;

  watch(member: FramedView): void {
    if (this.observer === null) {
      // It tells of tabs and panels. Of what scrolls, JupyterLab lets it tell a second late.
      this.observer = new IntersectionObserver(this.lookLater);
      document.addEventListener('scroll', this.lookLater, { capture: true, passive: true });
    }
    this.members.set(member, member.node.closest<HTMLElement>('.jp-Cell') ?? member.node);
    this.observer.observe(member.node);
    this.lookLater();
  }

  leave(member: FramedView): void {
    this.observer?.unobserve(member.node);
    this.members.delete(member);
    this.near.delete(member);
    this.stop(member);
    this.lookLater();
  }

  /** Those out of sight, too, are searched and printed. */
  refuse(why: string): void {
    for (const member of [...this.members.keys()]) {
      member.refuse(why);
    }
  }

  private readonly lookLater = (): void => {
    this.looking ??= setTimeout(() => {
      this.looking = undefined;
      this.look();
    }, LOOK_MILLISECONDS);
  };

  /** Begins all that are seen, then one after the other of those that are near, if they do not move. */
  private look(): void {
    const seen: FramedView[] = [];
    const others: FramedView[] = [];
    for (const [member, place] of this.members) {
      const { top, bottom, height } = place.getBoundingClientRect();
      const before = this.near.get(member);
      if (height === 0 || bottom < -MARGIN || top > innerHeight + MARGIN) {
        this.near.delete(member);
      } else {
        this.near.set(member, top);
        const isStill = before !== undefined && Math.abs(top - before) <= MAX_MOVED;
        if (isStill && !this.alive.has(member)) {
          (bottom > 0 && top < innerHeight ? seen : others).push(member);
        }
      }
      if (this.near.has(member) !== (before !== undefined)) {
        // JupyterLab lays out no cell that is out of sight, and so no frame in it.
        place.style.contentVisibility = before === undefined ? 'visible' : '';
        if (this.alive.delete(member)) {
          this.alive.add(member); // the newest
        }
      }
    }
    for (const member of seen.length > 0 ? seen : others.slice(0, 1)) {
      this.shrink(MAX_ALIVE - 1);
      if (this.alive.size < MAX_ALIVE) {
        this.alive.add(member);
        member.begin();
      }
    }
    this.shrink(MAX_KEPT);
    if (this.alive.size < MAX_ALIVE && [...this.near.keys()].some(it => !this.alive.has(it))) {
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

  private stop(member: FramedView): void {
    if (this.alive.delete(member)) {
      member.end();
    }
  }
}
