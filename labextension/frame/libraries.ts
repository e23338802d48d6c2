/** The libraries that pages usually load from elsewhere, under the names that they have there. */

import * as d3 from 'd3';
import lodash from 'lodash';
import * as lucide from 'lucide-react';
import * as React from 'react';
import * as jsxRuntime from 'react/jsx-runtime';
import * as ReactDOM from 'react-dom';
import * as ReactDOMClient from 'react-dom/client';
import * as Recharts from 'recharts';

const ReactDOMWhole = { ...ReactDOM, ...ReactDOMClient };

window.gvisorLibraries = Object.freeze({
  d3,
  lodash,
  'lucide-react': lucide,
  react: React,
  'react-dom': ReactDOMWhole,
  'react-dom/client': ReactDOMWhole,
  'react/jsx-runtime': jsxRuntime,
  recharts: Recharts
});
Object.assign(window, { React, ReactDOM: ReactDOMWhole, Recharts, d3, _: lodash });
