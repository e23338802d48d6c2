"""What a kernel can print to get into the page that shows it: a cell each.

``ACT`` is the script that each tries to run: it leaves its name in ``window.attacked``. ``BEACON`` is
an address that tells a stranger that the output was opened.
"""

from __future__ import annotations

BEACON = "/gk-beacon/"

PREPARE = """
import base64, json, struct, zlib
from IPython.display import HTML, SVG, Javascript, Latex, Markdown, clear_output, display
from IPython.display import publish_display_data as publish, update_display
def act(name):
    # The first posts as the person: this opened a terminal on the host.
    return ("(window.attacked=window.attacked||[]).push('%s');document.title='attacked';"
            "fetch(JSON.parse(document.getElementById('jupyter-config-data').textContent).baseUrl"
            "+'api/terminals',{method:'POST',headers:{Authorization:'token '+JSON.parse(document"
            ".getElementById('jupyter-config-data').textContent).token}})" % name)
def img(name):
    return '<img src=x onerror="%s">' % act(name)
def beacon(name):
    return '/gk-beacon/' + name
def png(width, height, *chunks):
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0))
    rows = zlib.compress((b'\\0' + b'\\xff\\0\\0' * width) * height)
    return b'\\x89PNG\\r\\n\\x1a\\n' + head + b''.join(chunk(*it) for it in chunks) + chunk(
        b'IDAT', rows) + chunk(b'IEND', b'')
print('prepared')
"""

ATTACKS: dict[str, str] = {
    "image": "HTML(img('image'))",
    "script": "HTML('<script>%s</script>' % act('script'))",
    "svg-onload": """HTML('<svg onload="%s"><animate onbegin="%s" attributeName=x dur=1s></svg>'
        % (act('svg-onload'), act('svg-animate')))""",
    "srcdoc": """HTML('<iframe srcdoc="<script>parent.attacked=[1]</script>"></iframe>')""",
    "iframe-src": "HTML('<iframe src=\"javascript:parent.attacked=[1]\"></iframe><embed src=/lab>')",
    "javascript": "Javascript(act('javascript'))",
    "svg": "SVG(data='<svg xmlns=\"http://www.w3.org/2000/svg\" onload=\"%s\"><text y=\"9\">t</text></svg>'"
    " % act('svg').replace('\"', ''))",
    "toggle": "HTML('<details open ontoggle=\"%s\"><summary>s</summary></details>' % act('toggle'))",
    "focus": "HTML('<input autofocus onfocus=\"%s\"><a id=x tabindex=1 onfocusin=\"%s\" autofocus>a</a>'"
    " % (act('focus'), act('focusin')))",
    "style-import": "HTML('<style>@import \"%s\"; .jp-Notebook {display: none}</style>' % beacon('import'))",
    "style-scoped": "HTML('<style scoped>.dataframe td {background: url(%s)} .jp-Cell {opacity: 0}"
    "</style><table class=dataframe><tr><td>x</td></tr></table>' % beacon('scoped'))",
    "style-attribute": "HTML('<p style=\"background:url(%s)\">p</p><p style=\"list-style-image:"
    "url(%s);display:list-item\">p</p>' % (beacon('background'), beacon('list')))",
    "image-beacon": "HTML('<img src=%s><input type=image src=%s><video poster=%s></video><audio src=%s autoplay>"
    "</audio>' % (beacon('img'), beacon('input'), beacon('poster'), beacon('audio')))",
    "link": "HTML('<link rel=stylesheet href=%s><link rel=prefetch href=%s>' % (beacon('link'), beacon('pre')))",
    "refresh": "HTML('<meta http-equiv=refresh content=\"0;url=%s\"><base href=\"http://127.0.0.1:1/\">'"
    " % beacon('refresh'))",
    "cover": "HTML('<div style=\"position:fixed;inset:0;z-index:99999;background:red\">cover</div>"
    "<div style=\"position:absolute;top:-500px;left:0;width:2000px;height:2000px\">cover</div>')",
    "command": """HTML('<button data-commandlinker-command="apputils:display-notifications" '
        'data-commandlinker-args="{}" class="jp-Button">run all</button>')""",
    "click": """HTML('<a href="javascript:%s">a</a> <button onclick="%s">b</button>'
        '<form action="javascript:%s"><button>c</button></form><a href="/lab/tree/x" download>d</a>'
        % (act('href'), act('onclick'), act('form')))""",
    "clobber": "HTML('<form id=jupyter-config-data name=jupyterapp><input name=body id=main></form>"
    "<a id=jp-main-dock-panel name=attacked href=x:y>a</a>')",
    "mutation": "HTML('<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;"
    "&lt;img src=1 onerror=%s&gt;\">' % act('mutation').replace(\"'\", '`'))",
    "noscript": "HTML('<noscript><p title=\"</noscript>%s\">' % img('noscript').replace('\"', '&quot;'))",
    "shadow": "HTML('<div><template shadowrootmode=open><style>:host{position:fixed;inset:0}</style>%s"
    "</template></div>' % img('shadow'))",
    "list": "publish({'text/html': ['<img src=', 'x onerror=\"%s\">' % act('list')]})",
    "object": "publish({'text/html': {'toString': img('object')}, 'text/plain': {'a': 1}})",
    "isolated": "publish({'text/html': img('isolated')}, {'isolated': True, 'trusted': True,"
    " 'gvisor_kernel': {'trusted': True}, 'text/html': {'isolated': True, 'trusted': True}})",
    "isolated-text": "publish({'text/plain': '<img src=x onerror=\"%s\">' % act('isolated-text')},"
    " {'isolated': True, 'fragment': '*'})",
    "forged": "publish({'application/vnd.gvisor-kernel.walled': img('forged'), 'text/html': img('forged')},"
    " transient={'gvisor-kernel:origin': 'local', 'trusted': True})",
    "markdown": "Markdown('# Title\\n\\n%s\\n\\n<script>%s</script>\\n\\n[a](javascript:%s)' %"
    " (img('markdown'), act('md-script'), act('md-link')))",
    "markdown-mermaid": "Markdown('```mermaid\\ngraph TD\\n A[\"%s\"] --> B\\n click A \"javascript:%s\"\\n```'"
    " % (img('mermaid').replace('\"', ''), act('mermaid-link')))",
    "mermaid": "publish({'text/vnd.mermaid': 'graph TD\\n A[\"%s\"]' % img('mm').replace('\"', '')})",
    "markdown-image": "Markdown('![a](%s) <img src=\"%s\">' % (beacon('markdown'), beacon('md')))",
    "latex": r"""Latex(r'$\href{javascript:%s}{x}$ $\style{position:fixed;top:0;left:0}{\text{cover}}$'
        r' $\class{jp-Button}{x} \cssId{main}{x}$' % act('latex'))""",
    "latex-bbox": r"Latex(r'$\bbox[position:fixed;background:url(%s)]{x}$' % beacon('bbox'))",
    "latex-define": r"Latex(r'$\gdef\alpha{\text{forged}} \def\x{\x\x}\x$')",
    "latex-in-html": r"""HTML(r'<p>$\href{javascript:%s}{x} \style{position:fixed}{y}$</p>' % act('tex'))""",
    "vega": "publish({'application/vnd.vega.v5+json': {'$schema': 'https://vega.github.io/schema/vega/v5.json',"
    " 'width': 9, 'height': 9, 'data': [{'name': 't', 'url': beacon('vega')}]}, 'text/plain': 'vega'})",
    "widget": "import ipywidgets; display(ipywidgets.HTML(img('widget')), ipywidgets.Label(r'$\\\\alpha$'))",
    "update": "shown = display('first', display_id=True); shown.update(HTML(img('update')))",
    "clear": "print('first'); clear_output(wait=True); display(HTML(img('clear')))",
    "two-documents": "publish({'application/pdf': base64.b64encode(b'%PDF-1.4').decode(), 'text/plain': 'pdf'})",
    "picture-large": "publish({'image/png': base64.b64encode(png(1, 1).replace(struct.pack('>II', 1, 1),"
    " struct.pack('>II', 30000, 30000))).decode(), 'text/plain': 'large picture'})",
    "picture-moves": "publish({'image/png': base64.b64encode(png(1, 1, (b'acTL', b'\\0' * 8))).decode(),"
    " 'text/plain': 'picture that moves'})",
    "picture-other": "publish({'image/png': base64.b64encode(b'GIF89a' + b'\\0' * 40).decode(),"
    " 'image/svg+xml': '<svg onload=1>', 'text/plain': 'no picture'})",
    "text-link": "print('javascript://x/%%0a%s and www.example.com' % act('link').split(';')[0])",
    "error": "raise type('<img src=x onerror=attacked=1>', (Exception,), {})(img('error'))",
    "ansi": "print('\\x1b[31m<img src=x onerror=attacked=1>\\x1b[0m \\x1b]8;;javascript:attacked=1\\x07x\\x1b]8;;\\x07')",
}

HARMLESS: dict[str, str] = {
    "table": "import pandas as pd; pd.DataFrame({'name': ['ann', '<b>bob</b>'], 'x': [1.5, 2.0]})",
    "plot": "import matplotlib.pyplot as plt; plt.plot([1, 3, 2]); plt.show()",
    "formula": r"Latex(r'$\frac{\alpha}{\sqrt{2}}$')",
    "tree": "from IPython.display import JSON; JSON({'key': [1, 2]})",
    "words": "Markdown('# Heading\\n\\n**bold** and `code`\\n\\n| a |\\n|---|\\n| 1 |')",
    "colours": "print('\\x1b[32mgreen\\x1b[0m')",
}
"""What stays in the page as it is, without a line."""
import os
if os.environ.get("ONLY"): ATTACKS = {k: v for k, v in ATTACKS.items() if k in os.environ["ONLY"].split(",")}
