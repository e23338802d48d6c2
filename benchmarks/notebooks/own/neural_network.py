# A small network, trained.

# %%
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

# %%
torch.manual_seed(21)
x = torch.randn(4_000, 20)
y = (x[:, :3].sum(1) > 0).long()
loader = DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

# %% training by torch, three epochs
optimizer = torch.optim.Adam(model.parameters())
for _ in range(3):
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
loss.item()

# %% DataLoader with two workers
sum(len(labels) for _, labels in DataLoader(TensorDataset(x, y), batch_size=256, num_workers=2))
