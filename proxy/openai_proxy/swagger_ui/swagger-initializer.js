"use strict";

const element = document.getElementById("swagger-ui");
SwaggerUIBundle({
  url: new URL(element.dataset.document, window.location.href).href,
  domNode: element,
  deepLinking: true,
  validatorUrl: null, // by default another server would be shown the document
});
