"use strict";
{
  const counts = JSON.parse(document.getElementById("explorer-data").textContent);
  const part = (name) => document.getElementById("explorer-" + name);
  const slider = part("threshold");
  const entry = part("prevalence");
  const { positives, negatives } = counts;
  const own = positives / (positives + negatives);
  let prevalence = own;

  const show = (name, value, text) => {
    part(name).value = value === null ? "" : String(value);
    part(name).textContent = value === null ? "–" : text(value);
  };
  const percent = (share) => (100 * share).toFixed(1) + "\u00a0%";
  // At least three decimals, so that the number does not change its width at every step, and no power of ten.
  const decimal = (value) => {
    const short = value.toFixed(15).replace(/0+$/, "");
    return short.length - short.indexOf(".") - 1 < 3 ? value.toFixed(3) : short;
  };
  const whole = (number) => Math.round(number).toLocaleString("en");

  // The same computation as operating_point in dermstack/report/explorer.py.
  const operatingPoint = (truePositives, falsePositives) => {
    const sensitivity = truePositives / positives;
    const specificity = 1 - falsePositives / negatives;
    const found = sensitivity * prevalence;
    const missed = (1 - sensitivity) * prevalence;
    const alarms = (1 - specificity) * (1 - prevalence);
    const spared = specificity * (1 - prevalence);
    const ppv = found + alarms > 0 ? found / (found + alarms) : null;
    const npv = spared + missed > 0 ? spared / (spared + missed) : null;
    return { sensitivity, specificity, accuracy: found + spared, ppv, npv, biopsies: ppv ? 1 / ppv : null };
  };

  const update = () => {
    const place = Number(slider.value);
    const truePositives = counts.truePositives[place];
    const falsePositives = counts.falsePositives[place];
    const threshold = counts.threshold[place];
    const point = operatingPoint(truePositives, falsePositives);
    show("at", threshold, decimal);
    slider.setAttribute("aria-valuetext", "p_calibrated " + decimal(threshold) + " or more");
    for (const name of ["sensitivity", "specificity", "accuracy", "ppv", "npv"]) show(name, point[name], percent);
    show("biopsies", point.biopsies, (value) => value.toFixed(1));
    show("tp", truePositives, whole);
    show("fn", positives - truePositives, whole);
    show("fp", falsePositives, whole);
    show("tn", negatives - falsePositives, whole);
    const sick = Math.round(1000 * prevalence);
    const found = Math.round(point.sensitivity * sick);
    const alarms = Math.round((1 - point.specificity) * (1000 - sick));
    part("words").textContent =
      `Of 1,000 such images, ${whole(sick)} are positive: ${whole(found)} found, ${whole(sick - found)} missed. ` +
      `Of the other ${whole(1000 - sick)} images, ${whole(alarms)} are false alarms.`;
  };

  const readPrevalence = () => {
    const given = entry.valueAsNumber / 100;
    const usable = given >= 0.0001 && given <= 0.9999; // an empty field fails both comparisons
    entry.setAttribute("aria-invalid", String(!usable));
    part("error").textContent = usable ? "" : "Enter a number from 0.01 to 99.99. The results still use the last valid number.";
    if (usable) prevalence = given;
    update();
  };

  slider.addEventListener("input", update);
  entry.addEventListener("input", readPrevalence);
  part("reset").addEventListener("click", () => {
    entry.value = (100 * own).toFixed(2);
    readPrevalence();
    prevalence = own; // the exact value, not the rounded one
    update();
  });
  part("without").hidden = true;
  part("controls").hidden = false;
  update();
}
