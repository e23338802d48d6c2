/**
 * What links of widgets do (``jslink``, ``jsdlink``): an attribute gets the value of another one. It
 * is done here, as the two widgets may be in two frames, or in none.
 */

import { type Attribute, type Model, type WidgetStore, isId } from './widget_store.js';

/** Each is looked at when something changes; one that goes both ways is two. Also how many values are
 *  copied in a tenth of a second: a message that changes one value copies fewer. */
const MAX_LINKS = 1000;

interface End {
  readonly id: string;
  readonly name: string;
}

export class WidgetLinks {
  /** Each with the id of its widget, which may have one back. */
  private links: readonly { readonly by: string; readonly from: End; readonly to: End }[] = [];
  private left = MAX_LINKS;
  /** From where is copied later. */
  private readonly late = new Set<End>();

  /** ``put`` keeps a value, tells it to everybody, and follows it. */
  constructor(
    private readonly store: WidgetStore,
    private readonly put: (id: string, name: string, attribute: Attribute) => void
  ) {}

  /** Follows a model from now on, if it is a link. */
  look(model: Model): void {
    const [module, name] = ['_model_module', '_model_name'].map(
      it => model.attributes.get(it)?.value
    );
    const [source, target] = [endOf(model, 'source'), endOf(model, 'target')];
    const isLink = name === 'LinkModel' || name === 'DirectionalLinkModel';
    const isKnown = isLink && module === '@jupyter-widgets/controls';
    if (isKnown && source !== null && target !== null && this.links.length < MAX_LINKS) {
      const link = { by: model.id, from: source, to: target };
      const back = name === 'LinkModel' ? [{ ...link, from: target, to: source }] : [];
      this.links = [...this.links, link, ...back];
      this.copy(source, target);
    }
  }

  close(id: string): void {
    this.links = this.links.filter(({ by }) => by !== id);
  }

  clear(): void {
    this.links = [];
  }

  /** Copies what has changed to where it is linked; what is there already ends a circle. */
  follow(id: string, names: readonly string[]): void {
    const changed = new Set(names);
    for (const { from, to } of this.links) {
      if (from.id === id && changed.has(from.name)) {
        this.copy(from, to);
      }
    }
  }

  private copy(from: End, to: End): void {
    const [value, old] = [from, to].map(end => this.store.get(end.id)?.attributes.get(end.name));
    if (value === undefined || old === undefined || isSame(value, old)) {
      return;
    }
    if (this.left === MAX_LINKS) {
      setTimeout(this.goOn, 100);
    }
    if (this.left === 0) {
      this.late.add(from);
    } else {
      this.left -= 1;
      const buffers = value.buffers.map(it => ({ ...it, path: [to.name, ...it.path.slice(1)] }));
      this.put(to.id, to.name, { ...value, buffers });
    }
  }

  private readonly goOn = (): void => {
    const late = [...this.late];
    this.late.clear();
    this.left = MAX_LINKS;
    late.forEach(({ id, name }) => this.follow(id, [name]));
  };
}

const isSame = (one: Attribute, other: Attribute): boolean =>
  one.value === other.value &&
  one.buffers.length === other.buffers.length &&
  one.buffers.every(({ data }, index) => data === other.buffers[index]?.data);

function endOf({ attributes }: Model, side: 'source' | 'target'): End | null {
  const value = attributes.get(side)?.value;
  const [model, name] = Array.isArray(value) ? (value as unknown[]) : [];
  const id = typeof model === 'string' ? model.replace('IPY_MODEL_', '') : null;
  return isId(id) && isId(name) ? { id, name } : null;
}
