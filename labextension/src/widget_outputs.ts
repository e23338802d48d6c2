/**
 * What ``Output`` widgets catch. Such a widget names a request; what the kernel prints as an answer
 * to it goes to the widget's attribute ``outputs`` instead of the cell.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';

import {
  type Attribute,
  type Fields,
  type Model,
  isId,
  measure,
  recordOf
} from './widget_store.js';

type Connection = Pick<Kernel.IKernelConnection, 'registerMessageHook' | 'removeMessageHook'>;
type Hook = (message: KernelMessage.IIOPubMessage) => boolean;

/** Messages that are outputs, and what such a widget keeps of each: no id of a display. */
const FIELDS: Readonly<Record<string, readonly string[]>> = {
  stream: ['name', 'text'],
  display_data: ['data', 'metadata'],
  execute_result: ['data', 'metadata', 'execution_count'],
  error: ['ename', 'evalue', 'traceback']
};
const MAX_OUTPUTS = 1000;
/** Of all outputs of a widget: each new one is sent to the kernel together with the others. */
const MAX_BYTES = 8 * 1024 * 1024;
const MAX_STREAM = 1024 * 1024;

interface Caught {
  /** Whether the next output replaces the others (``clear_output(wait=True)``). */
  waits: boolean;
  request: string;
  readonly hook: Hook;
}

export class WidgetOutputs {
  private readonly widgets = new Map<string, Caught>();

  /** ``put`` keeps an attribute, and tells it to frames and to the kernel. */
  constructor(
    private readonly connection: Connection,
    private readonly put: (id: string, name: string, attribute: Attribute) => void
  ) {}

  /** Catches for the request that a model names now, if it is an output widget. */
  look(model: Model): void {
    const { id, attributes } = model;
    if (attributes.get('_model_module')?.value !== '@jupyter-widgets/output') {
      return;
    }
    const value = attributes.get('msg_id')?.value;
    const request = isId(value) ? value : '';
    const made: Caught = {
      waits: false,
      request: '',
      hook: message => !this.catch(model, made, message)
    };
    const caught = this.widgets.get(id) ?? made;
    this.widgets.set(id, caught);
    if (caught.request !== request) {
      this.leave(caught);
      caught.request = request;
      if (request !== '') {
        this.connection.registerMessageHook(request, caught.hook);
      }
    }
  }

  private leave({ request, hook }: Caught): void {
    if (request !== '') {
      this.connection.removeMessageHook(request, hook);
    }
  }

  close(id: string): void {
    const caught = this.widgets.get(id);
    if (caught !== undefined) {
      this.leave(caught);
      this.widgets.delete(id);
    }
  }

  clear(): void {
    this.widgets.clear();
  }

  /** Whether the message is caught: then the cell does not get it. */
  private catch(model: Model, caught: Caught, message: KernelMessage.IIOPubMessage): boolean {
    const type = message.header.msg_type;
    const content = recordOf(message.content);
    if (type === 'clear_output') {
      caught.waits = content.wait === true;
      if (!caught.waits) {
        this.set(model, [], 0);
      }
      return true;
    }
    const fields = Object.hasOwn(FIELDS, type) ? FIELDS[type] : undefined;
    if (fields === undefined) {
      return false;
    }
    const known = caught.waits ? undefined : model.attributes.get('outputs');
    const outputs = Array.isArray(known?.value) ? (known.value as readonly unknown[]) : [];
    const all = outputs.map(recordOf);
    caught.waits = false;
    const output: Fields = {
      output_type: type,
      ...Object.fromEntries(fields.map(name => [name, content[name]]))
    };
    const last = all.at(-1);
    if (type === 'stream' && last?.output_type === 'stream' && last.name === output.name) {
      const text = `${String(last.text)}${String(output.text)}`.slice(-MAX_STREAM);
      const growth = 2 * (text.length - String(last.text).length);
      const merged = [...all.slice(0, -1), { ...last, text }];
      this.set(model, merged, (known?.bytes ?? 0) + growth);
      return true;
    }
    const bytes = (known?.bytes ?? 0) + measure(output); // the others are not measured again
    if (all.length < MAX_OUTPUTS && bytes < MAX_BYTES) {
      this.set(model, [...all, output], bytes);
    }
    return true;
  }

  private set({ id }: Model, outputs: readonly Fields[], bytes: number): void {
    this.put(id, 'outputs', { value: outputs, bytes, buffers: [] });
  }
}
