/**
 * What ``Output`` widgets catch. Such a widget names a request; what the kernel prints as an answer
 * to it goes to the widget's attribute ``outputs`` instead of the cell.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';

import { type Fields, type Model, isId, measure, recordOf } from './widget_store.js';

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
  outputs: readonly Fields[];
  /** About; they are not measured again for each new one. */
  bytes: number;
  /** Whether the next output replaces the others (``clear_output(wait=True)``). */
  waits: boolean;
  request: string;
  readonly hook: Hook;
  /** Whether a message to the kernel is under way. */
  telling: boolean;
}

export class WidgetOutputs {
  private readonly widgets = new Map<string, Caught>();

  /** ``show`` tells the frames; the promise of ``tell`` ends when the kernel has the outputs. */
  constructor(
    private readonly connection: Connection,
    private readonly show: (id: string, outputs: readonly Fields[], bytes: number) => void,
    private readonly tell: (id: string, outputs: readonly Fields[]) => Promise<unknown> | null
  ) {}

  /** Catches for the request that a model names now, if it is an output widget. */
  look({ id, attributes }: Model): void {
    if (attributes.get('_model_module')?.value !== '@jupyter-widgets/output') {
      return;
    }
    const value = attributes.get('msg_id')?.value;
    const request = isId(value) ? value : '';
    const caught = this.widgets.get(id) ?? this.begin(id);
    if (caught.request === request) {
      return;
    }
    if (caught.request !== '') {
      this.connection.removeMessageHook(caught.request, caught.hook);
    } else {
      const known = attributes.get('outputs'); // the kernel may have set them meanwhile
      caught.outputs = Array.isArray(known?.value) ? known.value.map(recordOf) : [];
      caught.bytes = known?.bytes ?? 0;
    }
    caught.request = request;
    if (request !== '') {
      this.connection.registerMessageHook(request, caught.hook);
    }
  }

  private begin(id: string): Caught {
    const caught: Caught = {
      outputs: [],
      bytes: 0,
      waits: false,
      request: '',
      hook: message => !this.catch(id, caught, message),
      telling: false
    };
    this.widgets.set(id, caught);
    return caught;
  }

  close(id: string): void {
    const caught = this.widgets.get(id);
    if (caught !== undefined && caught.request !== '') {
      this.connection.removeMessageHook(caught.request, caught.hook);
    }
    this.widgets.delete(id);
  }

  clear(): void {
    this.widgets.clear();
  }

  /** Whether the message is caught: then the cell does not get it. */
  private catch(id: string, caught: Caught, message: KernelMessage.IIOPubMessage): boolean {
    const type = message.header.msg_type;
    const content = recordOf(message.content);
    if (type === 'clear_output') {
      caught.waits = content.wait === true;
      if (!caught.waits) {
        this.set(id, caught, [], 0);
      }
      return true;
    }
    const fields = Object.hasOwn(FIELDS, type) ? FIELDS[type] : undefined;
    if (fields === undefined) {
      return false;
    }
    if (caught.waits) {
      caught.waits = false;
      caught.outputs = [];
      caught.bytes = 0;
    }
    const output: Fields = {
      output_type: type,
      ...Object.fromEntries(fields.map(name => [name, content[name]]))
    };
    const last = caught.outputs.at(-1);
    if (type === 'stream' && last?.output_type === 'stream' && last.name === output.name) {
      const text = `${String(last.text)}${String(output.text)}`.slice(-MAX_STREAM);
      const growth = 2 * (text.length - String(last.text).length);
      const merged = [...caught.outputs.slice(0, -1), { ...last, text }];
      this.set(id, caught, merged, caught.bytes + growth);
      return true;
    }
    const bytes = caught.bytes + measure(output);
    if (caught.outputs.length < MAX_OUTPUTS && bytes < MAX_BYTES) {
      this.set(id, caught, [...caught.outputs, output], bytes);
    }
    return true;
  }

  private set(id: string, caught: Caught, outputs: readonly Fields[], bytes: number): void {
    caught.outputs = outputs;
    caught.bytes = bytes;
    this.show(id, outputs, bytes);
    if (!caught.telling) {
      this.pass(id, caught);
    }
  }

  /** One message is under way for each widget, and the newest outputs are in the next. */
  private pass(id: string, caught: Caught): void {
    const { outputs } = caught;
    caught.telling = true;
    const done = (): void => {
      caught.telling = false;
      if (caught.outputs !== outputs && this.widgets.get(id) === caught) {
        this.pass(id, caught);
      }
    };
    (this.tell(id, outputs) ?? Promise.resolve()).then(done, done);
  }
}
