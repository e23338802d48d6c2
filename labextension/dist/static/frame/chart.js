"use strict";(()=>{function a(e){window.gvisorRender=e}function i(e){let o=document.createElement("style");o.textContent=e,document.head.append(o)}function d(e){let[o,n,r,t]=e?["#e3e3e3","#111","#555","#2a2a2a"]:["#1c1c1c","#fff","#bbb","#f0f0f0"];i(`
    body { margin: 0; padding: 16px; color: ${o}; background: ${n};
      font: 14px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
    table { border-collapse: collapse } th, td { border: 1px solid ${r}; padding: 2px 8px;
      text-align: left; vertical-align: top; white-space: pre-wrap; max-width: 40em }
    th { background: ${t}; position: sticky; top: 0 }
    pre, code { background: ${t}; font: 13px/1.4 ui-monospace, monospace }
    pre { padding: 8px; overflow: auto } img, svg, canvas { max-width: 100% }
    a { color: ${e?"#8ab4f8":"#0b57d0"} } p.note { opacity: 0.8 }
  `)}a(async(e,{dark:o,root:n})=>{d(o);let r=window.vegaEmbed;await r(n,JSON.parse(e),{actions:!1,...o?{theme:"dark"}:{}})});})();
