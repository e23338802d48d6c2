/** Leaflet, as maps of folium load it: with a plain marker in place of those of icon fonts. */

import * as leaflet from 'leaflet';
import icon from 'leaflet/dist/images/marker-icon.png';
import shadow from 'leaflet/dist/images/marker-shadow.png';
import styles from 'leaflet/dist/leaflet.css';

import { addStyle } from './renderer.js';

const L: Record<string, unknown> = { ...leaflet };
const pictures = { iconUrl: icon, iconRetinaUrl: icon, shadowUrl: shadow };
class Marker extends leaflet.Icon {
  constructor() {
    super({ ...leaflet.Icon.Default.prototype.options, ...pictures });
  }
}
leaflet.Marker.mergeOptions({ icon: new Marker() });
// Leaflet.awesome-markers draws icons of fonts that are loaded from elsewhere.
L.AwesomeMarkers = {
  Icon: Marker,
  icon: () => new Marker()
};
// A cluster is drawn as its markers, and a map of heat as its points.
L.markerClusterGroup = () => new leaflet.FeatureGroup();
L.heatLayer = (points: leaflet.LatLngTuple[]) =>
  new leaflet.FeatureGroup(points.map(it => new leaflet.CircleMarker(it, { radius: 6 })));
Object.assign(window, { L });
addStyle(styles);
