"use strict";
// NiiVue and the volumes stand in the page, compressed.
(async () => {
  const text = (id) => document.getElementById(id).textContent;
  const bytes = (base64) => Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
  const canvas = document.getElementById("viewer");
  try {
    const packed = new Blob([bytes(text("niivue"))]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(packed).text();
    document.head.append(script);
    const { Niivue, NVImage } = window.niivue;
    const viewer = new Niivue({ backColor: [0, 0, 0, 1], isRadiologicalConvention: true, crosshairWidth: 0.5, crosshairColor: [0.2, 0.8, 0.9, 0.8], logLevel: "silent" });
    await viewer.attachToCanvas(canvas);
    viewer.setSliceType(viewer.sliceTypeMultiplanar);
    viewer.onLocationChange = (at) => { document.getElementById("place").textContent = at.string; };
    const { images, overlays, limits } = JSON.parse(text("volumes"));
    const load = (name, options) => NVImage.loadFromBase64({ base64: images[name] || overlays[name], name: `${name}.nii.gz`, ...options });
    const signed = (limit) => ({ colormap: "warm", colormapNegative: "winter", cal_min: 0.1 * limit, cal_max: limit });
    const styles = (name) => (name in images ? { colormap: "red" } : name in limits ? signed(limits[name]) : { colormap: "random" });
    const below = document.getElementById("below");
    const above = document.getElementById("above");
    const opacity = document.getElementById("opacity");
    const draw = async () => {
      const limit = limits[above.value];
      document.getElementById("scale").textContent = limit ? `green and blue to \u2212${limit}, red and yellow to ${limit}` : "";
      while (viewer.volumes.length) viewer.removeVolumeByIndex(viewer.volumes.length - 1);
      viewer.addVolume(await load(below.value, { colormap: "gray", opacity: 1 }));
      if (above.value !== "nothing") viewer.addVolume(await load(above.value, { ...styles(above.value), opacity: Number(opacity.value) }));
    };
    below.onchange = draw;
    above.onchange = draw;
    opacity.oninput = () => { if (viewer.volumes.length > 1) viewer.setOpacity(1, Number(opacity.value)); };
    await draw();
    canvas.dataset.ready = "yes";
  } catch (error) {
    document.getElementById("trouble").textContent = `This browser cannot show the volumes: ${error.message || error}`;
  }
})();
