/**
 * What ``Output`` widgets catch. Such a widget names a request; what the kernel prints as an answer
 * to it goes to the widget's attribute ``outputs`` instead of the cell.
 */

import type { Kernel, KernelMessage } from '@jupyterlab/services';

import { isId, measure, type WidgetStore } from './widget_store.js';

type Connection = Pick<Kernel.IKernelConnection, 'registerMessageHook' | 'removeMessageHook'>;
type Hook = (message: KernelMessage.IIOPubMessage) => boolean;
type Output = Readonly<Record<string, unknown>>;

const CAUGHT = ['stream', 'display_data', 'execute_result', 'error'];
const MAX_OUTPUTS = 1000;
/** Of all outputs of a widget: each new one is sent to the kernel together with the others. */
const MAX_BYTES = 8 * 1024 * 1024;
const MAX_STREAM = 1024 * 1024;

interface Caught {
  outputs: readonly Output[];
  bytes: number;
  /** Whether the next output replaces the others (``clear_output(wait=True)``). */
  waits: boolean;
  request: string;
  readonly hook: Hook;
  telling: boolean;
  again: boolean;
}

export class WidgetOutputs {
  private readonly widgets = new Map<string, Caught>();

  /** ``show`` tells the frames; the promise of ``tell`` ends when the kernel has the outputs. */
  constructor(
    private readonly connection: Connection,
    private readonly show: (id: string, outputs: readonly Output[]) => void,
    private readonly tell: (id: string, outputs: readonly Output[]) => Promise<unknown> | null
  ) {}

  /** Catches for the request that a widget names now, if it is an output widget. */
  look(id: string, store: WidgetStore): void {
    if (!store.isOutput(id)) {
      return;
    }
    const attributes = store.get(id)?.attributes;
    const value = attributes?.get('msg_id')?.value;
    const request = isId(value) ? value : '';
    const caught = this.widgets.get(id) ?? this.begin(id);
    if (caught.request === request) {
      return;
    }
    if (caught.request !== '') {
      this.connection.removeMessageHook(caught.request, caught.hook);
    } else {
      // The kernel may have set them meanwhile.
      const known = attributes?.get('outputs');
      caught.outputs = Array.isArray(known?.value) ? (known.value as Output[]) : [];
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
      telling: false,
      again: false
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

  private catch(id: string, caught: Caught, message: KernelMessage.IIOPubMessage): boolean {
    const type = message.header.msg_type;
    const content = message.content as Output;
    if (type === 'clear_output') {
      caught.waits = content.wait === true;
      if (!caught.waits) {
        this.set(id, caught, [], 0);
      }
      return true;
    }
    if (!CAUGHT.includes(type)) {
      return false;
    }
    if (caught.waits) {
      caught.waits = false;
      caught.outputs = [];
      caught.bytes = 0;
    }
    const output = { ...content, output_type: type };
    const bytes = measure(output)?.bytes ?? Infinity;
    const last = caught.outputs.at(-1);
    if (type === 'stream' && last?.output_type === 'stream' && last.name === content.name) {
      const text = `${String(last.text)}${String(content.text)}`.slice(-MAX_STREAM);
      const growth = 2 * (text.length - String(last.text).length);
      const merged = [...caught.outputs.slice(0, -1), { ...last, text }];
      this.set(id, caught, merged, caught.bytes + growth);
    } else if (caught.outputs.length < MAX_OUTPUTS && caught.bytes + bytes < MAX_BYTES) {
      this.set(id, caught, [...caught.outputs, output], caught.bytes + bytes);
    }
    return true;
  }

  private set(id: string, caught: Caught, outputs: readonly Output[], bytes: number): void {
    caught.outputs = outputs;
    caught.bytes = bytes;
    this.show(id, outputs);
    if (caught.telling) {
      caught.again = true;
    } else {
      this.pass(id, caught);
    }
  }

  /** One message is under way for each widget, and the newest outputs are in the next. */
  private pass(id: string, caught: Caught): void {
    caught.telling = true;
    caught.again = false;
    const done = (): void => {
      caught.telling = false;
      if (caught.again && this.widgets.get(id) === caught) {
        this.pass(id, caught);
      }
    };
    (this.tell(id, caught.outputs) ?? Promise.resolve()).then(done, done);
  }
}
