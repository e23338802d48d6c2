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
  /** A click of the person at this place of the frame. */
  press(x: number, y: number): void;
  /** The page has taken the keyboard. */
  stolen(): void;
}

const LOOK_MILLISECONDS = 50;
/** Elements whose content may have the focus. */
const HOLDERS = 'iframe, frame, object, embed';

/** Frames that are shown. */
const alive = new Set<PageUse>();
/** What had the focus last, outside of all frames. */
let elsewhere: HTMLElement | null = null;
let looking: ReturnType<typeof setInterval> | null = null;

function look(): void {
  for (const use of [...alive]) {
    use.check();
  }
}

/** This window has lost the focus: to another window, or to a frame, which is the active element. */
function lookAtBlur(): void {
  const { activeElement, body } = document;
  if (document.hasFocus() && (activeElement === null || activeElement === body)) {
    for (const use of [...alive]) {
      use.suspect(); // some frame has it, and the browser does not say which
    }
  } else {
    look();
  }
}

function note({ target }: Event): void {
  if (target instanceof HTMLElement && !target.matches(HOLDERS)) {
    elsewhere = target;
    look();
  }
}

function notePress({ target }: Event): void {
  for (const use of [...alive]) {
    use.pressedAt(target);
  }
}

function begin(use: PageUse): void {
  alive.add(use);
  if (looking === null) {
    document.addEventListener('focusin', note, true);
    document.addEventListener('pointerdown', notePress, true);
    window.addEventListener('blur', lookAtBlur);
    // A frame that takes the focus from another frame takes it from neither window nor element here.
    looking = setInterval(look, LOOK_MILLISECONDS);
  }
}

function end(use: PageUse): void {
  alive.delete(use);
  if (alive.size === 0 && looking !== null) {
    document.removeEventListener('focusin', note, true);
    document.removeEventListener('pointerdown', notePress, true);
    window.removeEventListener('blur', lookAtBlur);
    clearInterval(looking);
    looking = null;
  }
}

export class PageUse {
  /** The frame below its layer. */
  readonly node: HTMLElement;
  private readonly layer: HTMLButtonElement;
  private entered = false;
  /** The page has not heard yet that it may not have the keyboard any more. It may have asked for it
   *  just before, which takes effect later: it loses it again, once. */
  private leaving = false;
  /** The page is about to lose the keyboard. */
  private giving = false;

  constructor(
    private readonly frame: HTMLIFrameElement,
    name: string,
    private readonly actions: UseActions
  ) {
    const hint = element('span', { class: 'gk-button' }, 'Use this page');
    this.layer = element(
      'button',
      {
        class: 'gk-page-layer',
        attributes: {
          type: 'button',
          'aria-label': `Use this page: ${name}`,
          title: 'Use this page. The Escape key, or a click elsewhere, leaves it.',
          'data-lm-suppress-shortcuts': 'true' // Enter is for this button, not for a cell
        },
        click: event => {
          this.enter(event);
        }
      },
      hint
    );
    frame.inert = true;
    this.node = element('div', { class: 'gk-page-holder' }, frame, this.layer);
    begin(this);
  }

  /** Whether the person uses the page: it has the keyboard by their will. */
  get isEntered(): boolean {
    return this.entered && document.activeElement === this.frame;
  }

  private enter({ detail, clientX, clientY }: MouseEvent): void {
    this.entered = true;
    this.leaving = false;
    this.frame.inert = false;
    this.layer.hidden = true;
    this.actions.allow(true);
    this.frame.focus();
    if (detail > 0) {
      const { left, top } = this.frame.getBoundingClientRect();
      this.actions.press(clientX - left, clientY - top);
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
    this.leaving = true;
    this.layer.hidden = false;
    this.frame.inert = true;
    this.actions.allow(false);
  }

  /** The page has heard that the person has left. What it asked for before has taken effect. */
  heard(): void {
    this.check();
    this.leaving = false;
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
    if (this.leaving) {
      this.leaving = false;
      this.giveBack();
    } else {
      this.actions.stolen();
      this.giveBack();
    }
  }

  /** While the browser tells that the window loses the focus, it is changing it: an element would
   *  become the active one then, and the keys would stay with the page. */
  private giveBack(): void {
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
    end(this);
    this.node.remove();
  }
}
