# Algebra.

# %%
import sympy as sp

# %%
x, y, n = sp.symbols("x y n")
sp.expand((x + y) ** 12)

# %% integrals and equations by sympy
sp.core.cache.clear_cache()
found = [
    sp.integrate(sp.exp(-(x**2)) * x**3, (x, 0, sp.oo)),
    sp.solve(x**4 - 5 * x**2 + 4, x),
    sp.limit(sp.sin(3 * x) / x, x, 0),
    sp.summation(1 / n**2, (n, 1, sp.oo)),
    sp.factor(x**8 - 1),
]
found

# %%
matrix = sp.Matrix(4, 4, lambda row, column: sp.Rational(1, row + column + 1))
matrix.inv(), matrix.det()

# %%
sp.series(sp.tan(x) * sp.exp(x), x, 0, 9)

# %%
f = sp.Function("f")
sp.dsolve(f(x).diff(x, 2) + 4 * f(x) - sp.cos(x), f(x))
