/** Vega, under the names that pages load it by. Altair writes charts for these versions. */

import * as vega from 'vega';
import embed from 'vega-embed';
import * as vegaLite from 'vega-lite';

Object.assign(window, { vega, vegaLite, vl: vegaLite, vegaEmbed: embed });
