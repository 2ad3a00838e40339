"""Draws training batches: random crops, mixed over ids and augmented, with their targets.

B batch, C ids, F bins, T frames, N samples.
"""

import numpy as np
import torch
from torch import Tensor

from mimimi_core import augment
from mimimi_core.config import AugmentConfig
from mimimi_core.crops import Crops
from mimimi_core.frontend import Frontend
from mimimi_core.pack import Pack


class Batches:
    """Training clips of one pack, on the device of their crops.

    Args:
        config: Which augmentations, and how often.
        pack: The clips; its train normals are drawn.
        crops: The same clips, ready to be cropped.
        frontend: Waveforms to features.
        device: Where crops and front-end live.
    """

    def __init__(
        self,
        config: AugmentConfig,
        pack: Pack,
        crops: Crops,
        frontend: Frontend,
        device: torch.device,
    ) -> None:
        self.config, self.crops, self.frontend, self.device = config, crops, frontend, device
        clips = pack.select("train", label=0)
        n_ids = len(pack.machine_ids)
        self.clips = torch.from_numpy(clips).to(device)  # int64 (n,) what an epoch goes through
        self.ids = torch.from_numpy(pack.id_index).to(device)  # int64, of every clip of the pack
        of_id = [clips[pack.id_index[clips] == i] for i in range(n_ids)]
        self._one_hot = torch.eye(n_ids, device=device)  # torch's `one_hot` reads the ids back
        self._n_of_id = torch.tensor([len(x) for x in of_id], device=device)
        longest = max(len(x) for x in of_id)
        padded = [np.resize(x if len(x) else clips[:1], longest) for x in of_id]
        self._clips_of_id = torch.from_numpy(np.stack(padded)).to(device)

    def draw(self, clips: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Augmented features of random crops of `clips` `(B,)`, and target weights `(B, C)`."""
        config, ids = self.config, self.ids[clips]
        waveforms = self.crops.random(clips, generator)
        if config.mixing:
            target = augment.mixing_weights(
                ids, self._n_of_id > 0, config.mixing_p, config.mixing_alpha, generator
            )
            waveforms = self._mix(waveforms, ids, target, generator)
        else:
            target = self._one_hot[ids]
        return self.features(waveforms, config, generator), target

    def features(
        self, waveforms: Tensor, config: AugmentConfig, generator: torch.Generator
    ) -> Tensor:
        """Features of `(B, N)` crops, augmented by all of `config` but mixing."""
        if config.noise:
            waveforms = augment.add_noise(waveforms, config.noise_p, config.noise_level, generator)
        spectrum = self.frontend.transform(waveforms)
        if config.mask:
            spectrum = augment.mask_bands(
                spectrum, config.mask_p, config.mask_bands, config.mask_width, generator
            )
        if config.shift:
            hop_per_window = self.frontend.config.hop / self.frontend.config.n_fft
            spectrum = augment.shift_bins(
                spectrum, config.shift_p, config.shift_bins, hop_per_window, generator
            )
        return self.frontend.features(spectrum)

    def _mix(self, own: Tensor, ids: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Weighted sum of one crop per id; the crop's own id contributes the crop itself.

        Mixing waveforms is mixing complex spectra: the transform is linear. Magnitudes and log-mel
        spectra, which Giri et al. mix, are not: see `mimimi_core.table2`.
        """
        mixed = torch.zeros_like(own)
        for index in range(weights.shape[1]):
            u = torch.rand(len(own), generator=generator, device=self.device)
            pick = self._clips_of_id[index, (u * self._n_of_id[index]).long()]
            other = self.crops.random(pick, generator)
            is_own = (ids == index)[:, None]
            mixed += weights[:, index, None] * torch.where(is_own, own, other)
        return mixed
