/**
 * Who has the keyboard: the person's page around a frame, or the frame.
 *
 * A page that takes the focus reads what the person types elsewhere. A frame has the keyboard from
 * the click on the layer above it until Escape or a click elsewhere. No browser keeps a frame from
 * taking the focus in between; whatever is in one that does so is ended at once.
 */

import { element } from './dom.js';

export interface UseActions {
  /** The page may have the keyboard, or not any more. */
  allow(allowed: boolean): void;
  /** The person's pointer does this above the frame, at this place of it: move, down, up, click. */
  point(what: string, x: number, y: number): void;
  /** The page has taken the keyboard. */
  stolen(): void;
}

/** What a layer says; of a document there is nothing to use. */
const LABELS = {
  page: 'Click to use this page',
  document: 'Click to scroll',
  output: 'Use this output'
};
const LOOK_MILLISECONDS = 50;
/** So long after the person has left it, a page may not have heard it yet. */
const LEAVE_MILLISECONDS = 1000;
/** Elements whose content may have the focus. */
const HOLDERS = 'iframe, frame, object, embed';

/** Frames that are shown. */
const alive = new Set<PageUse>();
/** What had the focus last, outside of all frames. */
let elsewhere: HTMLElement | null = null;
let looking: ReturnType<typeof setInterval> | undefined;

function look(): void {
  for (const use of [...alive]) {
    use.check();
  }
}

if (typeof window !== 'undefined') {
  const focused = ({ target }: Event): void => {
    if (target instanceof HTMLElement && !target.matches(HOLDERS)) {
      elsewhere = target;
      look();
    }
  };
  const pressed = ({ target }: Event): void => {
    for (const use of [...alive]) {
      use.pressedAt(target);
    }
  };
  // This window has lost the focus: to another window, or to a frame, which is the active element.
  const blurred = (): void => {
    const { activeElement, body } = document;
    if (document.hasFocus() && (activeElement === null || activeElement === body)) {
      for (const use of [...alive]) {
        use.suspect(); // some frame has it, and the browser does not say which
      }
    } else {
      look();
    }
  };
  document.addEventListener('focusin', focused, true);
  document.addEventListener('pointerdown', pressed, true);
  window.addEventListener('blur', blurred);
}

export class PageUse {
  /** The frame below its layer. */
  readonly node: HTMLElement;
  private readonly layer: HTMLButtonElement;
  private entered = false;
  /** When the person has left the page. It may have asked for the keyboard just before, which takes
   *  effect later: it loses it again, once. */
  private left = -Infinity;
  /** The page is about to lose the keyboard. */
  private giving = false;

  /** ``kind``: what the person is told that it is, a page, an output; null if it cannot be used. */
  constructor(
    private readonly frame: HTMLIFrameElement,
    kind: 'page' | 'document' | 'output' | null,
    private readonly actions: UseActions
  ) {
    const use = `Use this ${kind}`;
    this.layer = element(
      'button',
      {
        class: `gk-page-layer gk-use-${kind}`,
        attributes: {
          type: 'button',
          'aria-label': `${use}: ${frame.title}`,
          title: `${use}. The Escape key, or a click elsewhere, leaves it.`,
          'data-lm-suppress-shortcuts': 'true' // Enter is for this button, not for a cell
        },
        click: event => this.enter(event)
      },
      element('span', { class: 'gk-button' }, kind === null ? '' : LABELS[kind])
    );
    this.layer.disabled = kind === null;
    // The page has no pointer of its own as long as the layer is there: the person's is passed on.
    for (const what of ['move', 'down', 'up', 'leave', 'cancel']) {
      this.layer.addEventListener(`pointer${what}`, event => {
        const { button, pointerId } = event as PointerEvent;
        if (what === 'down' && button === 0) {
          this.layer.setPointerCapture(pointerId);
        }
        if (button <= 0) {
          this.pass(what, event as PointerEvent);
        }
      });
    }
    frame.inert = true;
    this.node = element('div', { class: 'gk-page-holder' }, frame, this.layer);
    alive.add(this);
    // A frame that takes the focus from another frame takes it from neither window nor element here.
    looking ??= setInterval(look, LOOK_MILLISECONDS);
  }

  /** Whether the person uses the page: it has the keyboard by their will. */
  get isEntered(): boolean {
    return this.entered && document.activeElement === this.frame;
  }

  private pass(what: string, { clientX, clientY }: MouseEvent): void {
    const { left, top } = this.frame.getBoundingClientRect();
    this.actions.point(what, clientX - left, clientY - top);
  }

  private enter(event: MouseEvent): void {
    this.entered = true;
    this.left = -Infinity;
    this.frame.inert = false;
    this.layer.hidden = true;
    this.actions.allow(true);
    this.frame.focus();
    if (event.detail > 0) {
      this.pass('click', event);
    }
  }

  /** Takes the keyboard back. The layer gets it, so that the next key goes to no cell. */
  leave(): void {
    if (this.entered) {
      this.layer.hidden = false;
      this.layer.focus();
      this.shut();
    }
  }

  private shut(): void {
    this.entered = false;
    this.left = performance.now();
    this.layer.hidden = false;
    this.frame.inert = true;
    this.actions.allow(false);
  }

  pressedAt(target: EventTarget | null): void {
    if (this.entered && !(target instanceof Node && this.node.contains(target))) {
      this.shut();
    }
  }

  check(): void {
    const hasIt = document.activeElement === this.frame;
    if (this.entered && !hasIt) {
      this.shut();
    } else if (!this.entered && hasIt) {
      this.suspect();
    }
  }

  /** The frame has the keyboard, or may have it. */
  suspect(): void {
    if (this.entered || this.giving) {
      return;
    }
    const isLate = performance.now() - this.left < LEAVE_MILLISECONDS;
    this.left = -Infinity;
    if (!isLate) {
      this.actions.stolen();
    }
    // While the browser tells that the window loses the focus, it is changing it: an element would
    // become the active one then, and the keys would stay with the page.
    this.giving = true;
    setTimeout(() => {
      this.giving = false;
      this.frame.blur();
      if (elsewhere?.isConnected === true) {
        elsewhere.focus();
      }
    });
  }

  dispose(): void {
    alive.delete(this);
    if (alive.size === 0) {
      clearInterval(looking);
      looking = undefined;
    }
    this.node.remove();
  }
}
